# What `cmake --install` puts where, and the packages that `cpack` makes of it: scripts/release.sh.
# Man pages and completions come from what the program says of itself.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(td_pages ${CMAKE_BINARY_DIR}/pages)
add_custom_command(OUTPUT ${td_pages}/man1/tandem.1
    COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/scripts/make_pages.py $<TARGET_FILE:tandem> ${td_pages}
    DEPENDS tandem ${CMAKE_SOURCE_DIR}/scripts/make_pages.py VERBATIM)
add_custom_target(td_pages ALL DEPENDS ${td_pages}/man1/tandem.1)

install(TARGETS tandem RUNTIME DESTINATION bin COMPONENT tandem)
install(DIRECTORY ${td_pages}/man1 DESTINATION share/man COMPONENT tandem)
install(FILES ${td_pages}/bash/tandem DESTINATION share/bash-completion/completions COMPONENT tandem)
install(FILES ${td_pages}/zsh/_tandem DESTINATION share/zsh/vendor-completions COMPONENT tandem)
install(FILES ${td_pages}/fish/tandem.fish DESTINATION share/fish/vendor_completions.d COMPONENT tandem)
install(FILES LICENSE DESTINATION share/doc/tandem RENAME copyright COMPONENT tandem)
install(DIRECTORY configs/ DESTINATION share/tandem/configs USE_SOURCE_PERMISSIONS COMPONENT tandem)
install(DIRECTORY docs/ DESTINATION share/doc/tandem/docs COMPONENT tandem-doc)
install(FILES README.md DESTINATION share/doc/tandem COMPONENT tandem-doc)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME tandem)
set(CPACK_PACKAGE_CONTACT "the authors of tandem <tandem@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL tandem tandem-doc)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_TANDEM_PACKAGE_NAME tandem)
set(CPACK_DEBIAN_TANDEM-DOC_PACKAGE_NAME tandem-doc)
set(CPACK_DEBIAN_TANDEM-DOC_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_TANDEM_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_TANDEM_PACKAGE_RECOMMENDS mesa-vulkan-drivers)
set(CPACK_DEBIAN_TANDEM_PACKAGE_SUGGESTS gnuplot-nox) # of `tandem report`
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_COMPONENT_TANDEM_DESCRIPTION "${PROJECT_DESCRIPTION}
 Runs a large language model split over unlike devices and makes it fast by speculation, which never
 changes the text.")
set(CPACK_COMPONENT_TANDEM-DOC_DESCRIPTION "${PROJECT_DESCRIPTION}: manual")
include(CPack)
