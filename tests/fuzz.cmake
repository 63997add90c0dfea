# Fuzz harnesses: one program per tests/fuzz/fuzz_NAME.c, run over its corpus with every compiler and
# sanitizer of the tests; and with libFuzzer, where clang is there, for a minute in all.
file(GLOB fuzz_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_*.c)
foreach(source ${fuzz_sources})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE "fuzz_" "" harness ${name})
    add_executable(test_${name} ${source} ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/runner.c)
    target_link_libraries(test_${name} PRIVATE td_cli PkgConfig::CMOCKA)
    add_test(NAME hostile_${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
             COMMAND test_${name} ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${harness})
    td_set_up(hostile_${name} hostile)
endforeach()
if(NOT TD_SANITIZE) # it brings its own
    td_script_test(fuzz_minute fuzz ${CMAKE_SOURCE_DIR}/scripts/fuzz.sh --seconds 60)
endif()
