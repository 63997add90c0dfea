/* Random numbers against the known answers of the Philox authors' library (kat_vectors), and the
 * hash against published values of the two functions it is made of. */
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void test_philox_gives_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t out[4];
        td_philox(rows[i].counter, rows[i].key, out);
        assert_memory_equal(out, rows[i].out, sizeof out);
    }
}

static void test_noise_takes_its_word_of_the_block(void **state)
{
    (void)state;
    const uint64_t stream = 0x299f31d0a4093822u, position = 0x1122334455667788u;
    for (uint32_t token = 0; token < 64; token++) {
        const uint32_t counter[4] = {token / 4, 0x55667788u, 0x11223344u, 0};
        const uint32_t key[2] = {0xa4093822u, 0x299f31d0u};
        uint32_t out[4];
        td_philox(counter, key, out);
        assert_int_equal(td_noise_bits(stream, position, token), out[token % 4]);
    }
}

static void test_exponential_noise_has_mean_and_variance_one(void **state)
{
    (void)state;
    const uint32_t n = 200000;
    double sum = 0, sum_of_squares = 0, smallest = INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        double e = td_noise_exponential(7, i / 1000, i % 1000);
        assert_true(isfinite(e) && e > 0);
        sum += e;
        sum_of_squares += e * e;
        smallest = e < smallest ? e : smallest;
    }
    double mean = sum / n, variance = sum_of_squares / n - mean * mean;
    /* Five standard errors: 1 / sqrt(n) of the mean, sqrt(8 / n) of the variance. */
    assert_true(fabs(mean - 1) < 5 / sqrt(n));
    assert_true(fabs(variance - 1) < 5 * sqrt(8.0 / n));
    assert_true(smallest < 1e-3);
}

static void test_hash_is_fnv1a_finished_by_splitmix64(void **state)
{
    (void)state;
    const uint64_t basis = 0xcbf29ce484222325u;
    /* The first output of splitmix64 from state 0. */
    assert_true(td_hash64(basis, "", 0) == 0xe220a8397b1dcdafu);
    /* FNV-1a of "a" and "foobar", from its authors' test vectors. */
    assert_true(td_hash64(0, "a", 1) == td_hash64(basis ^ 0xaf63dc4c8601ec8cu, "", 0));
    assert_true(td_hash64(0, "foobar", 6) == td_hash64(basis ^ 0x85944171f73967e8u, "", 0));
    assert_true(td_hash64(1, "a", 1) != td_hash64(0, "a", 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_known_answers),
        cmocka_unit_test(test_noise_takes_its_word_of_the_block),
        cmocka_unit_test(test_exponential_noise_has_mean_and_variance_one),
        cmocka_unit_test(test_hash_is_fnv1a_finished_by_splitmix64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
