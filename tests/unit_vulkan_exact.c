/* td_vk_exact_module on every compiled shader: all floating-point operations end up decorated,
 * once, and nothing else changes; words that are no module are refused. Needs no GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/mem.h"
#include "kernels/vulkan/exact.h"
#include "kernels/vulkan/shaders.h"

#include <string.h>

enum { EXT_INST = 12, DECORATE = 71, F_ADD = 129, F_SUB = 131, F_MUL = 133, F_DIV = 136, FMA = 50 };

#define NO_CONTRACTION 42u
#define IDS_MAX        65536u

static uint8_t n_decorations[IDS_MAX]; /* NoContraction of each id */

static void count_decorations(const uint32_t *words, size_t n_words)
{
    memset(n_decorations, 0, sizeof n_decorations);
    for (size_t i = 5; i < n_words; i += words[i] >> 16)
        if ((words[i] & 0xffff) == DECORATE && words[i + 2] == NO_CONTRACTION)
            n_decorations[words[i + 1]]++;
}

static void check_shader(const td_shader *shader, size_t *n_fma)
{
    td_err err = {0};
    size_t n_words, n_source = *shader->n_words, n_kept = 5;
    uint32_t *words = td_vk_exact_module(shader->words, n_source, &n_words, &err);
    assert_non_null(words);
    assert_memory_equal(words, shader->words, 5 * sizeof *words);
    count_decorations(words, n_words);
    for (size_t i = 5; i < n_words; i += words[i] >> 16) {
        uint32_t opcode = words[i] & 0xffff;
        bool is_fma = opcode == EXT_INST && words[i + 4] == FMA;
        *n_fma += is_fma;
        if (is_fma || opcode == F_ADD || opcode == F_SUB || opcode == F_MUL || opcode == F_DIV)
            assert_int_equal(n_decorations[words[i + 2]], 1);
        /* What is no added decoration is the source, in its order. */
        size_t length = words[i] >> 16;
        bool is_kept = n_kept + length <= n_source &&
                       !memcmp(words + i, shader->words + n_kept, length * sizeof *words);
        assert_true(is_kept || (opcode == DECORATE && words[i + 2] == NO_CONTRACTION));
        n_kept += is_kept ? length : 0;
    }
    assert_int_equal(n_kept, n_source);
    td_free(words);
}

static void test_every_operation_of_every_shader_is_decorated(void **state)
{
    (void)state;
    uint32_t n;
    size_t n_fma = 0;
    const td_shader *shaders = td_shader_list(&n);
    assert_true(n > 0);
    for (uint32_t i = 0; i < n; i++)
        check_shader(&shaders[i], &n_fma);
    assert_true(n_fma > 0);
}

static void test_words_that_are_no_module_are_refused(void **state)
{
    (void)state;
    static const uint32_t bad[][8] = {
        {0},
        {0x07230203, 0x10600, 0, 1u << 30, 0, 0x00020011, 1}, /* too many ids */
        {0x07230203, 0x10600, 0, 8, 0, 0},                    /* instruction of length 0 */
        {0x07230203, 0x10600, 0, 8, 0, 0x00090011, 1, 1},     /* longer than the module */
        {0x07230203, 0x10600, 0, 8, 0, 0x00030081, 1, 9},     /* id out of range */
        {0x07230203, 0x10600, 0, 8, 0, 0x00030011, 1, 1},     /* no annotation section */
    };
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        td_err err = {0};
        size_t n_words;
        assert_null(td_vk_exact_module(bad[i], 8, &n_words, &err));
        assert_int_equal(err.code, TD_E_BUG);
    }
    td_err err = {0};
    size_t n_words;
    assert_null(td_vk_exact_module(bad[1], 3, &n_words, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_operation_of_every_shader_is_decorated),
        cmocka_unit_test(test_words_that_are_no_module_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
