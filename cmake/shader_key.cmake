# td_shader_key: a hash of all that shaders are made of, below SOURCE; written to OUTPUT, if that is
# given.
file(GLOB texts ${SOURCE}/kernels/shaders/*.comp ${SOURCE}/kernels/shaders/inc/*
     ${SOURCE}/cmake/shaders.cmake)
set(sums "")
foreach(text ${texts})
    file(SHA256 ${text} sum)
    string(APPEND sums "${sum}")
endforeach()
string(SHA256 td_shader_key "${sums}")
if(OUTPUT)
    file(WRITE ${OUTPUT} ${td_shader_key})
endif()
