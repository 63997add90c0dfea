# Scripts run as tests. Each exits 77 where what it needs is missing.
function(td_script_test name label)
    add_test(NAME ${name} COMMAND ${ARGN} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    td_set_up(${name} ${label} TANDEM_CACHE_DIR=${TD_TEST_CACHE}/tandem
              TANDEM_KEYS_DIR=${TD_TEST_CACHE}/no-keys)
    # See CMakeLists.txt; the others mostly wait, or compile shaders on one thread.
    if(name MATCHES "^e2e_(bench|io)$")
        set_tests_properties(${name} PROPERTIES PROCESSORS 3)
    endif()
endfunction()

# Vulkan: the shaders are valid, compile without spilling on AMD's GPUs, and the programs that use
# a device have nothing to hear from the validation layers.
td_script_test(unit_shaders_valid unit ${CMAKE_CURRENT_SOURCE_DIR}/check_shaders.sh
               ${TD_SHADER_DIR} ${TD_SPIRV_VAL})
td_script_test(unit_shaders_radv unit ${CMAKE_CURRENT_SOURCE_DIR}/check_radv.sh
               $<TARGET_FILE:test_unit_vulkan_compile> navi21 vega10) # unit_shader_stats has two more
td_script_test(unit_shader_stats unit ${CMAKE_SOURCE_DIR}/scripts/shader_stats.sh --check
               $<TARGET_FILE:test_unit_vulkan_compile>)
foreach(source ${test_sources})
    get_filename_component(name ${source} NAME_WE)
    if(name MATCHES "^op_|^unit_vulkan(_fuse)?$")
        # "sync" checks what "core" does too; "core" alone sees the barriers of ranges of a buffer.
        foreach(mode core sync gpu)
            if(mode STREQUAL "core" AND name MATCHES "^op_")
                continue()
            endif()
            # Instrumented, the unrolled kernels take many minutes on a software driver; the small
            # shapes of unit_vulkan run them all the same.
            if(mode STREQUAL "gpu" AND name MATCHES "mat_mul|attention|latent|experts|delta_net|fuse")
                continue()
            endif()
            td_script_test(validation_${mode}_${name} validation
                           ${CMAKE_CURRENT_SOURCE_DIR}/check_validation.sh ${mode}
                           $<TARGET_FILE:test_${name}>)
        endforeach()
    endif()
endforeach()

# Weights of every type in several buffers, and through the staging ring.
td_c_test(op_embed_slabs_vulkan test_op_embed op TD_TEST_DEVICES=vulkan
          TD_VK_LIMIT=maxStorageBufferRange=524288)
td_c_test(op_embed_staged_vulkan test_op_embed op TD_TEST_DEVICES=vulkan
          TD_VK_LIMIT=directWriteBytes=1)

# Attention as GPUs run it, which a software driver's own variant would hide.
td_c_test(op_attention_gpu_vulkan test_op_attention op TD_TEST_DEVICES=vulkan
          TD_VK_LIMIT=loadsByLane=0 TD_TEST_FILTER=*stand_together*)

# Law 1 with all kernels that a number of rows may take, of which the other tests of whole models have few.
td_c_test(golden_law1_variants_vulkan test_golden_law1 golden TD_GOLDEN=${td_golden} TD_TEST_DEVICES=vulkan
          TD_VK_LIMIT=fusedOps=9 TD_TEST_MODELS=llama,llama-q8_0)

# Chat templates: what tandem makes of them against Python's jinja2, our own and any that are here.
td_script_test(unit_chat_truth unit python3 ${CMAKE_CURRENT_SOURCE_DIR}/chat_truth.py
               $<TARGET_FILE:test_unit_jinja>)
set_tests_properties(unit_chat_truth PROPERTIES ENVIRONMENT "TD_GOLDEN=${td_golden}")

# The tree itself: who includes whom, sizes, format; and that every example configuration is one.
td_script_test(style_layers style python3 ${CMAKE_CURRENT_SOURCE_DIR}/check_layers.py)
td_script_test(style_format style ${CMAKE_CURRENT_SOURCE_DIR}/check_format.sh)
td_script_test(style_configs style ${CMAKE_CURRENT_SOURCE_DIR}/check_configs.sh
               $<TARGET_FILE:tandem>)
td_script_test(style_docs style python3 ${CMAKE_CURRENT_SOURCE_DIR}/check_docs.py
               $<TARGET_FILE:tandem>)

# The program as a user meets it.
td_script_test(e2e_cli e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_cli.py $<TARGET_FILE:tandem>)
td_script_test(e2e_keys e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_keys.py $<TARGET_FILE:tandem>)
td_script_test(e2e_job e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_job.py $<TARGET_FILE:tandem>)
td_script_test(e2e_strangers e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_strangers.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_prefix e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_prefix.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_io e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_io.py $<TARGET_FILE:tandem>)
td_script_test(e2e_bench e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_bench.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_eval e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_eval.py $<TARGET_FILE:tandem>)
td_script_test(e2e_report e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_report.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_scripts e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_scripts.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_bundle e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_bundle.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_package e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_package.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_setup e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_setup.py)
td_script_test(e2e_vocab e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_vocab.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_stage e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_stage.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_stage_faults e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_stage_faults.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_experts e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_experts.py
               $<TARGET_FILE:tandem>)
td_script_test(e2e_weights e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_weights.py
               $<TARGET_FILE:tandem>)
# All but the drift, which would be timed.
td_script_test(e2e_soak e2e ${CMAKE_SOURCE_DIR}/scripts/soak.sh --tandem $<TARGET_FILE:tandem>
               --minutes 2 --longest 1500 --lose 15)
td_script_test(e2e_kill e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_kill.py $<TARGET_FILE:tandem>)
set_property(TEST e2e_law1 e2e_draft APPEND PROPERTY ENVIRONMENT "TANDEM=$<TARGET_FILE:tandem>")
td_script_test(e2e_check e2e python3 ${CMAKE_CURRENT_SOURCE_DIR}/e2e_check.py
               $<TARGET_FILE:tandem>)
