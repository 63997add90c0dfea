# A second Vulkan driver, of another vendor: SwiftShader (scripts/fetch_swiftshader.sh) has subgroups
# of 4 lanes, no f16, workgroups of 256 at most, and a compiler of its own. On it run what asks most of
# a driver, with the fewest cases that do (docs/development.md). Without it these tests are skipped.
set(TD_SWIFTSHADER ${CMAKE_SOURCE_DIR}/build/drivers/swiftshader/vk_swiftshader_icd.json
    CACHE FILEPATH "SwiftShader's ICD file, for the tests")
set(td_swiftshader_alone VK_DRIVER_FILES=${TD_SWIFTSHADER} VK_ICD_FILENAMES=${TD_SWIFTSHADER}
    TD_TEST_DEVICES=vulkan:swiftshader TD_TEST_BRIEF=1)

# td_swiftshader_test(NAME [ENVIRONMENT...]): tests/NAME.c there, as NAME_swiftshader.
function(td_swiftshader_test name)
    string(REGEX MATCH "^[a-z0-9]+" label ${name})
    if(NOT name MATCHES "^(op_rotate|op_latent|unit_vulkan_fuse|golden_models)$")
        td_c_test(${name}_swiftshader test_${name} ${label} TD_GOLDEN=${td_golden}
                  ${td_swiftshader_alone} ${ARGN})
        return()
    endif()
    add_test(NAME ${name}_swiftshader WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
             COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/if_stores_compile.sh ${td_stores_mark}
                     $<TARGET_FILE:test_${name}>)
    td_set_up(${name}_swiftshader ${label} "TANDEM_CACHE_DIR=" TD_GOLDEN=${td_golden}
              ${td_swiftshader_alone} ${ARGN})
    set_property(TEST ${name}_swiftshader PROPERTY DEPENDS stores_compile_swiftshader)
endfunction()

# What the four of these ask is tried once, for all of them.
set(td_stores_mark ${TD_TEST_CACHE}/stores-do-not-compile)
add_test(NAME stores_compile_swiftshader WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
         COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/if_stores_compile.sh ${td_stores_mark}
                 $<TARGET_FILE:test_op_rotate> 120)
td_set_up(stores_compile_swiftshader op "TANDEM_CACHE_DIR=" TD_GOLDEN=${td_golden}
          ${td_swiftshader_alone} "TD_TEST_FILTER=test_a_rotated_cache_gives_*")

foreach(source ${test_sources})
    get_filename_component(name ${source} NAME_WE)
    if(name MATCHES "^op_") # op_embed decodes every weight type; products take one of each kind
        td_swiftshader_test(${name} TD_TEST_TYPES=F32,F16,Q8_0,Q4_K,IQ2_XS,MXFP4)
    endif()
endforeach()
td_swiftshader_test(unit_vulkan)
td_swiftshader_test(unit_vulkan_fuse)
td_swiftshader_test(unit_profile)
td_swiftshader_test(golden_models TD_TEST_MODELS=llama,llama-q4_k_m,qwen35,deepseek2,gpt-oss,gemma3)
td_script_test(validation_core_unit_vulkan_swiftshader validation
               ${CMAKE_CURRENT_SOURCE_DIR}/check_validation.sh core
               $<TARGET_FILE:test_unit_vulkan>)
set_property(TEST validation_core_unit_vulkan_swiftshader APPEND PROPERTY ENVIRONMENT
             ${td_swiftshader_alone})
td_script_test(e2e_check_swiftshader e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_check.py
               $<TARGET_FILE:tandem> Check.test_a_gpu_that_is_made_wrong_is_found_too)
set_property(TEST e2e_check_swiftshader APPEND PROPERTY ENVIRONMENT ${td_swiftshader_alone})

# Both drivers in one process, a target split over them.
set(td_both_drivers VK_ADD_DRIVER_FILES=${TD_SWIFTSHADER} TD_TEST_BRIEF=1)
set(td_one_order vulkan:swiftshader+vulkan:llvmpipe)
set(td_other_order vulkan:llvmpipe+vulkan:swiftshader)
td_c_test(golden_models_drivers_swiftshader test_golden_models golden TD_GOLDEN=${td_golden}
          ${td_both_drivers} TD_TEST_DEVICES=${td_other_order}
          TD_TEST_MODELS=llama,qwen35,deepseek2,gpt-oss)
td_c_test(golden_law1_drivers_swiftshader test_golden_law1 golden TD_GOLDEN=${td_golden}
          ${td_both_drivers} TD_TEST_DEVICES=${td_one_order}
          TD_TEST_MODELS=llama-q8_0,qwen35moe)
td_c_test(golden_pipeline_drivers_swiftshader test_golden_pipeline golden TD_GOLDEN=${td_golden}
          ${td_both_drivers} TD_TEST_DEVICES=${td_one_order} TD_TEST_MODELS=llama-q8_0,qwen35moe)
td_script_test(e2e_drivers e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_drivers.py
               $<TARGET_FILE:tandem> ${TD_SWIFTSHADER})
