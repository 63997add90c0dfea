# Compiles kernels/shaders/*.comp to SPIR-V, optimizes it and links it into td_kernels, where
# td_shader_find("mat_vec.Q4_K") gives its words. A shader named in TD_SHADER_VARIANTS is compiled
# once per value of the macro, all others once. Includes are tracked through depfiles.
set(TD_QUANTS # GGUF type ids, as in kernels/types.h
    F32=0 F16=1 Q4_0=2 Q4_1=3 Q5_0=6 Q5_1=7 Q8_0=8 Q2_K=10 Q3_K=11 Q4_K=12 Q5_K=13 Q6_K=14
    IQ2_XXS=16 IQ2_XS=17 IQ3_XXS=18 IQ1_S=19 IQ4_NL=20 IQ3_S=21 IQ2_S=22 IQ4_XS=23 IQ1_M=29
    BF16=30 TQ1_0=34 TQ2_0=35 MXFP4=39 NVFP4=40 Q1_0=41 Q2_0=42)
set(TD_SHADER_VARIANTS # shader:macro:list of NAME=VALUE
    embed:QUANT:TD_QUANTS
    mat_tile:QUANT:TD_QUANTS
    mat_vec:QUANT:TD_QUANTS)

# Another build of the same sources, whose SPIR-V is taken as it is instead of compiled again. A
# finished build says in shaders/key of which sources its shaders are.
set(TD_SHADERS_OF "" CACHE PATH "a finished build whose shaders are used")
set(TD_SHADER_DIR ${CMAKE_BINARY_DIR}/shaders)
file(MAKE_DIRECTORY ${TD_SHADER_DIR})
set(td_shaders_of "")
if(TD_SHADERS_OF)
    set(SOURCE ${CMAKE_SOURCE_DIR})
    include(${CMAKE_SOURCE_DIR}/cmake/shader_key.cmake)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${texts})
    set(key "none")
    if(EXISTS ${TD_SHADERS_OF}/shaders/key)
        file(READ ${TD_SHADERS_OF}/shaders/key key)
        set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${TD_SHADERS_OF}/shaders/key)
    endif()
    if(key STREQUAL td_shader_key)
        set(td_shaders_of ${TD_SHADERS_OF})
    else()
        message(STATUS "Shaders of ${TD_SHADERS_OF} are of other sources: compiled here instead")
    endif()
endif()

set(td_shader_files "")
set(td_shader_externs "")
set(td_shader_rows "")
set(td_shader_count 0)

# One SPIR-V module, named `name`, out of kernels/shaders/`source`.comp.
macro(td_shader name source)
    set(spv ${TD_SHADER_DIR}/${name}.spv)
    string(MAKE_C_IDENTIFIER "td_spv_${name}" symbol)
    list(APPEND td_shader_files ${spv})
    if(td_shaders_of)
        add_custom_command(
            OUTPUT ${spv}
            COMMAND ${CMAKE_COMMAND} -E copy ${td_shaders_of}/shaders/${name}.spv ${spv}
            DEPENDS ${td_shaders_of}/shaders/${name}.spv
            VERBATIM)
    else()
        add_custom_command(
            OUTPUT ${spv}
            COMMAND ${TD_GLSLANG} --quiet --target-env vulkan1.3 ${ARGN}
                    -I${CMAKE_SOURCE_DIR}/kernels/shaders --depfile ${spv}.d
                    -o ${spv} ${CMAKE_SOURCE_DIR}/kernels/shaders/${source}.comp
            COMMAND ${TD_SPIRV_OPT} --target-env=vulkan1.3 -O ${spv} -o ${spv}
            DEPENDS ${CMAKE_SOURCE_DIR}/kernels/shaders/${source}.comp
            DEPFILE ${spv}.d
            COMMENT "Shader ${name}"
            VERBATIM)
    endif()
    add_custom_command(
        OUTPUT ${spv}.c
        COMMAND ${CMAKE_COMMAND} -DINPUT=${spv} -DOUTPUT=${spv}.c -DSYMBOL=${symbol}
                -P ${CMAKE_SOURCE_DIR}/cmake/embed_shader.cmake
        DEPENDS ${spv} ${CMAKE_SOURCE_DIR}/cmake/embed_shader.cmake
        VERBATIM)
    target_sources(td_kernels PRIVATE ${spv}.c)
    string(APPEND td_shader_externs
           "extern const uint32_t ${symbol}[];\nextern const size_t ${symbol}_n_words;\n")
    string(APPEND td_shader_rows "    {\"${name}\", ${symbol}, &${symbol}_n_words},\n")
    math(EXPR td_shader_count "${td_shader_count} + 1")
endmacro()

file(GLOB td_shader_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/shaders/*.comp)
foreach(path ${td_shader_sources})
    get_filename_component(source ${path} NAME_WE)
    set(has_variants FALSE)
    foreach(variant ${TD_SHADER_VARIANTS})
        string(REPLACE ":" ";" variant ${variant})
        list(GET variant 0 shader)
        list(GET variant 1 macro)
        list(GET variant 2 values)
        if(shader STREQUAL source)
            set(has_variants TRUE)
            foreach(value ${${values}})
                string(REPLACE "=" ";" value ${value})
                list(GET value 0 suffix)
                list(GET value 1 number)
                td_shader(${source}.${suffix} ${source} -D${macro}=${number})
            endforeach()
        endif()
    endforeach()
    if(NOT has_variants)
        td_shader(${source} ${source})
    endif()
endforeach()

file(GLOB td_shader_includes CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/shaders/inc/*)
add_custom_command(
    OUTPUT ${TD_SHADER_DIR}/key
    COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUTPUT=${TD_SHADER_DIR}/key
            -P ${CMAKE_SOURCE_DIR}/cmake/shader_key.cmake
    DEPENDS ${td_shader_files} ${td_shader_sources} ${td_shader_includes}
            ${CMAKE_SOURCE_DIR}/cmake/shaders.cmake ${CMAKE_SOURCE_DIR}/cmake/shader_key.cmake
    VERBATIM)
add_custom_target(td_shader_key ALL DEPENDS ${TD_SHADER_DIR}/key)
configure_file(${CMAKE_SOURCE_DIR}/cmake/shader_table.c.in ${TD_SHADER_DIR}/shader_table.c @ONLY)
target_sources(td_kernels PRIVATE ${TD_SHADER_DIR}/shader_table.c)
