#!/bin/sh
# What AMD's compiler makes of llama.cpp's products, for shader_stats.sh --reference:
#
#     scripts/shader_stats_reference.sh CHECKOUT TEST_UNIT_VULKAN_COMPILE FAMILY FOLDER
#
# Compiles its mat-vec and prompt kernels of Q4_K and Q8_0 with the constants that its host code
# takes for such a GPU without matrix cores, into FOLDER, and prints a row of the table for each.
# RADV_FORCE_FAMILY and the driver are the caller's. glslang 12 has no name for products of four
# bytes: they become the instruction that shaders/inc/int8.glsl uses.
set -eu
program=$2 family=$3 folder=$4
mkdir -p "$folder"
cp -r "$1/ggml/src/ggml-vulkan/vulkan-shaders" "$folder/source"
sed -i -e 's|^#version 450.*|&\n#extension GL_GOOGLE_include_directive : require|' \
    -e 's|^#extension GL_EXT_integer_dot_product.*|#extension GL_EXT_spirv_intrinsics : require\nspirv_instruction(extensions = ["SPV_KHR_integer_dot_product"], capabilities = [6019, 6018], id = 4450)\nint dot_of_bytes(int a, int b, spirv_literal int packed_format);\n#define dotPacked4x8EXT(a, b) dot_of_bytes(int(a), int(b), 0)|' \
    "$folder"/source/*.comp "$folder"/source/*.glsl

build() { # NAME SOURCE DEFINE...: FOLDER/NAME.spv
    name=$1 source=$2
    shift 2
    glslangValidator -V --target-env vulkan1.2 -S comp "$@" -o "$folder/$name.raw" \
        "$folder/source/$source" >"$folder/log" 2>&1 || { cat "$folder/log" >&2 && exit 1; }
    spirv-opt -O "$folder/$name.raw" -o "$folder/$name.spv"
}

# Subgroups, and outputs of a subgroup of mul_mat_vecq with five columns and more.
case $family in
gfx1100) lanes=64 many=4 ;;
*) lanes=32 many=1 ;;
esac
f32='-DFLOAT_TYPE=float -DFLOAT_TYPEV2=vec2 -DD_TYPE=float'
f16='-DFLOAT16=1 -DFLOAT_TYPE=float16_t -DFLOAT_TYPEV2=f16vec2 -DFLOAT_TYPEV4=f16vec4
     -DFLOAT_TYPEV8=f16mat2x4 -DD_TYPE=float'
wide=$((lanes * 2)) small=$lanes
for type in Q4_K Q8_0; do
    case $type in
    Q4_K) id=12 source=mul_mat_vec_q4_k.comp outputs=2 iterations=1 ;;
    Q8_0) id=8 source=mul_mat_vec.comp outputs=1 iterations=2 ;;
    esac
    # shellcheck disable=SC2086
    {
        build "vec_$type" $source $f32 -DDATA_A_$type=1 -DUSE_SUBGROUP_ADD_NO_SHMEM=1 \
            -DB_TYPE=float -DB_TYPEV2=vec2 -DB_TYPEV4=vec4
        build "vecq_$type" mul_mat_vecq.comp $f32 -DDATA_A_$type=1 -DACC_TYPE=float \
            -DUSE_SUBGROUP_ADD_NO_SHMEM=1
        build "mmq_$type" mul_mmq.comp $f16 -DDATA_A_$type=1 -DACC_TYPE=float -DACC_TYPEV2=vec2
        build "mm_$type" mul_mm.comp $f16 -DMULMAT_QUANT=1 -DLOAD_VEC_B=8 -DB_TYPE=mat2x4 \
            -DB_TYPE_SCALAR=float -DB_TYPEV4=vec4 -DACC_TYPE=float16_t -DACC_TYPEV2=f16vec2 \
            '-DACC_TYPE_MAX=float16_t(65504.0)'
    }
    for n in 1 2 4 8; do # rows of activations
        "$program" "$folder/vec_$type.spv" "mul_mat_vec $n $type f32" $lanes $lanes $outputs $n
    done
    for n in 1 2 4 8; do
        rows=1
        [ $n -le 4 ] || rows=$many
        "$program" "$folder/vecq_$type.spv" "mul_mat_vecq $n $type q8_1" $lanes $lanes $rows $n
    done
    # Invocations, then outputs, rows and columns of a tile, what a subgroup has of them, and how
    # often; outputs and rows of an invocation each time; subgroup.
    i=$iterations
    while read -r size tile; do
        # shellcheck disable=SC2086
        "$program" "$folder/mmq_$type.spv" "mul_mmq $size $type q8_1" $lanes $tile
    done <<END
32x32 $small 32 32 32 32 32 $i 2 1 1 $lanes
64x64 128 64 64 32 $lanes 32 $i 2 2 1 $lanes
128x128 128 128 128 32 $wide 64 $i 4 4 1 $lanes
END
    while read -r size tile; do
        # shellcheck disable=SC2086
        "$program" "$folder/mm_$type.spv" "mul_mm $size $type f16" $lanes $tile 1 $id
    done <<END
32x32 $small 32 32 32 32 32 2 2 2 1 $lanes
64x64 128 64 64 32 $lanes 32 2 4 2 1 $lanes
128x128 128 128 128 32 $wide 64 2 4 4 1 $lanes
END
done
