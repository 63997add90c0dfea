/* Where layers go: parsing of device SPECs, pins and gaps, and the share-out
 * against brute force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "planning/placement.h"

#include <string.h>

#define MIB (1ull << 20)

/* -- specs ---------------------------------------------------------------------------------- */

static void test_spec_parses_names_and_ranges(void **state)
{
    (void)state;
    td_device_spec s;
    assert_true(td_device_spec_parse("host:2", &s, NULL));
    assert_string_equal(s.device, "host:2");
    assert_false(s.is_pinned);
    assert_true(td_device_spec_parse("vulkan:0@8-11", &s, NULL));
    assert_string_equal(s.device, "vulkan:0");
    assert_true(s.is_pinned);
    assert_int_equal(s.first, 8);
    assert_int_equal(s.last, 11);
    assert_true(td_device_spec_parse("vulkan:a@b@0-511", &s, NULL)); /* the last '@' counts */
    assert_string_equal(s.device, "vulkan:a@b");
    assert_int_equal(s.last, 511);
    assert_true(td_device_spec_parse("host@3-3", &s, NULL));
    assert_int_equal(s.first, 3);
}

static void test_spec_rejects_malformed_text(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "@0-1",
                                      "host@",
                                      "host@-",
                                      "host@1",
                                      "host@1-",
                                      "host@-1",
                                      "host@2-1",
                                      "host@0-512",
                                      "host@+0-1",
                                      "host@0-+1",
                                      "host@ 0-1",
                                      "host@0 -1",
                                      "host@0- 1",
                                      "host@0-1 ",
                                      "host@0-1-2",
                                      "host@0x1-2",
                                      "host@0-4294967296",
                                      "host@4294967296-4294967297",
                                      "host@0-18446744073709551616",
                                      "host@99999999999999999999-99999999999999999999",
                                      "host@a-b",
                                      "host@1--2",
                                      "host@0-1@"};
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        td_device_spec s;
        td_err err = {0};
        if (td_device_spec_parse(bad[i], &s, &err))
            fail_msg("\"%s\" was taken", bad[i]);
        assert_int_equal(err.code, TD_E_USAGE);
        assert_non_null(strstr(err.message, "device \""));
    }
    char text[256];
    td_device_spec s;
    memset(text, 'x', sizeof text);
    text[sizeof s.device - 1] = 0; /* the longest name */
    assert_true(td_device_spec_parse(text, &s, NULL));
    assert_string_equal(s.device, text);
    text[sizeof s.device - 1] = 'x';
    text[sizeof s.device] = 0;
    assert_false(td_device_spec_parse(text, &s, NULL));
}

/* -- pins ----------------------------------------------------------------------------------- */

static uint64_t layer_bytes[512];

static td_place_device pin(uint32_t first, uint32_t last)
{
    return (td_place_device){.budget_bytes = 1000 * MIB,
                             .layer_bytes = layer_bytes,
                             .is_pinned = true,
                             .first = first,
                             .last = last};
}

static td_place_device open_to(uint64_t budget_bytes)
{
    return (td_place_device){.budget_bytes = budget_bytes, .layer_bytes = layer_bytes};
}

static void refuses(td_place_device *devices, uint32_t n, uint32_t n_layers, td_err_code code,
                    const char *part)
{
    td_err err = {0};
    assert_false(td_place_layers(devices, n, n_layers, &err));
    assert_int_equal(err.code, code);
    if (!strstr(err.message, part))
        fail_msg("\"%s\" lacks \"%s\"", err.message, part);
}

static void fill_layers(uint64_t n_bytes)
{
    for (size_t i = 0; i < TD_COUNT(layer_bytes); i++)
        layer_bytes[i] = n_bytes;
}

static void test_pins_and_free_devices_cover_all_layers_in_order(void **state)
{
    (void)state;
    fill_layers(MIB);
    td_place_device d[] = {open_to(1000 * MIB), open_to(1000 * MIB), pin(6, 7), open_to(1000 * MIB),
                           pin(10, 15)};
    td_err err = {0};
    assert_true(td_place_layers(d, 5, 16, &err));
    const uint32_t want[5][2] = {{0, 2}, {3, 5}, {6, 7}, {8, 9}, {10, 15}};
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(d[i].first, want[i][0]);
        assert_int_equal(d[i].last, want[i][1]);
    }
    td_place_device all[] = {pin(0, 15)};
    assert_true(td_place_layers(all, 1, 16, &err));
    td_place_device one[] = {open_to(1000 * MIB)};
    assert_true(td_place_layers(one, 1, 1, &err));
    assert_int_equal(one[0].last, 0);
}

static void test_pins_that_do_not_fit_together_are_refused(void **state)
{
    (void)state;
    fill_layers(MIB);
    td_place_device gap_between[] = {pin(0, 3), pin(5, 15)};
    refuses(gap_between, 2, 16, TD_E_USAGE, "no device for layers 4..4");
    td_place_device gap_at_start[] = {pin(1, 15)};
    refuses(gap_at_start, 1, 16, TD_E_USAGE, "no device for layers 0..0");
    td_place_device gap_at_end[] = {pin(0, 14)};
    refuses(gap_at_end, 1, 16, TD_E_USAGE, "no device for layers 15..15");
    td_place_device overlap[] = {pin(0, 8), pin(8, 15)};
    refuses(overlap, 2, 16, TD_E_USAGE,
            "device 1 is pinned to layers 8..15; allowed here: layers from 9");
    td_place_device disorder[] = {pin(8, 15), pin(0, 7)};
    refuses(disorder, 2, 16, TD_E_USAGE, "no device for layers 0..7");
    td_place_device disorder_with_free[] = {open_to(MIB * 1000), pin(8, 15), pin(0, 7)};
    refuses(disorder_with_free, 3, 16, TD_E_USAGE, "device 2 is pinned");
    td_place_device beyond[] = {pin(0, 16)};
    refuses(beyond, 1, 16, TD_E_USAGE, "below 16");
    td_place_device reversed[] = {pin(0, 5), pin(6, 4), pin(5, 15)};
    refuses(reversed, 3, 16, TD_E_USAGE, "device 1 is pinned");
    td_place_device nothing_left[] = {pin(0, 7), open_to(MIB * 1000), pin(8, 15)};
    refuses(nothing_left, 3, 16, TD_E_USAGE, "device 1 is left without a layer");
    td_place_device nothing_left_at_end[] = {pin(0, 15), open_to(MIB * 1000)};
    refuses(nothing_left_at_end, 2, 16, TD_E_USAGE, "device 1 is left without a layer");
    td_place_device crowd[] = {open_to(MIB * 1000), open_to(MIB * 1000), open_to(MIB * 1000)};
    refuses(crowd, 3, 2, TD_E_USAGE, "3 devices for 2 layers");
    refuses(crowd, 0, 2, TD_E_USAGE, "no device for layers 0..1");
}

static void test_a_pinned_device_that_is_too_small_is_named(void **state)
{
    (void)state;
    fill_layers(10 * MIB);
    td_place_device d[] = {pin(0, 7), pin(8, 15)};
    d[1].budget_bytes = 80 * MIB;
    d[1].last_bytes = MIB;
    refuses(d, 2, 16, TD_E_NOMEM, "layers 8..15 need 81 MiB on device 1, which has 80 MiB");
    d[1].budget_bytes = 81 * MIB;
    assert_true(td_place_layers(d, 2, 16, NULL));
    d[0].fixed_bytes = 915 * MIB;
    d[0].first_bytes = 6 * MIB;
    refuses(d, 2, 16, TD_E_NOMEM, "layers 0..7 need 1001 MiB on device 0");
}

/* -- sharing -------------------------------------------------------------------------------- */

static void test_three_unequal_devices_fill_evenly(void **state)
{
    (void)state;
    fill_layers(10 * MIB);
    td_place_device d[] = {open_to(400 * MIB), open_to(100 * MIB), open_to(200 * MIB)};
    assert_true(td_place_layers(d, 3, 35, NULL)); /* half of each */
    assert_int_equal(d[0].last, 19);
    assert_int_equal(d[1].last, 24);
    assert_int_equal(d[2].last, 34);
    /* The embedding weighs on the first, the output on the last, a draft's share on the second. */
    d[0].first_bytes = 100 * MIB;
    d[2].last_bytes = 100 * MIB;
    assert_true(td_place_layers(d, 3, 15, NULL));
    assert_int_equal(d[2].first, 14); /* 110 of 200 at least, so ... */
    assert_int_equal(d[0].last, 11);  /* ... the first may have 220 of 400 */
    d[1].fixed_bytes = 90 * MIB;
    assert_true(td_place_layers(d, 3, 15, NULL));
    assert_int_equal(d[1].last, d[1].first); /* one layer fits, and one there must be */
    d[1].fixed_bytes = 91 * MIB;
    refuses(d, 3, 15, TD_E_NOMEM, "MiB");
}

static void test_what_does_not_fit_is_told_with_figures(void **state)
{
    (void)state;
    fill_layers(100 * MIB);
    td_place_device d[] = {open_to(500 * MIB), open_to(300 * MIB)};
    d[0].fixed_bytes = 50 * MIB;
    refuses(d, 2, 10, TD_E_NOMEM, "layers 0..9 need 1050 MiB");
    refuses(d, 2, 10, TD_E_NOMEM, "have 800 MiB");
    td_place_device none[] = {open_to(0)};
    refuses(none, 1, 10, TD_E_NOMEM, "have 0 MiB");
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static uint64_t bytes_of(const td_place_device *d, uint32_t first, uint32_t last, uint32_t n_layers)
{
    uint64_t n = d->fixed_bytes + (first == 0 ? d->first_bytes : 0) +
                 (last + 1 == n_layers ? d->last_bytes : 0);
    for (uint32_t i = first; i <= last; i++)
        n += d->layer_bytes[i];
    return n;
}

static double fill_of(const td_place_device *d, uint32_t first, uint32_t last, uint32_t n_layers)
{
    return (double)bytes_of(d, first, last, n_layers) / (double)d->budget_bytes;
}

/* The smallest possible share of the fullest device, over all cuts of n_layers into n runs: every
 * subset of n - 1 of the n_layers - 1 places between layers. */
static double best_share(const td_place_device *d, uint32_t n, uint32_t n_layers)
{
    double best = 1e300;
    for (uint32_t cuts = 0; cuts < 1u << (n_layers - 1); cuts++) {
        if ((uint32_t)__builtin_popcount(cuts) != n - 1)
            continue;
        double worst = 0;
        uint32_t first = 0, k = 0;
        for (uint32_t i = 0; i < n_layers; i++)
            if (i + 1 == n_layers || cuts >> i & 1) {
                double share = fill_of(&d[k++], first, i, n_layers);
                worst = share > worst ? share : worst;
                first = i + 1;
            }
        best = worst < best ? worst : best;
    }
    return best;
}

static void test_placement_is_the_best_of_all_cuts(void **state)
{
    (void)state;
    uint64_t r = 3, sizes[4][10];
    uint32_t n_feasible = 0, n_cases = 4000;
    for (uint32_t c = 0; c < n_cases; c++) {
        uint32_t n = 1 + (uint32_t)(next_random(&r) % 4);
        uint32_t n_layers = n + (uint32_t)(next_random(&r) % (11 - n));
        td_place_device d[4] = {0};
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t k = 0; k < n_layers; k++) /* two kinds of devices pad layers unlike */
                sizes[i][k] = 1 + next_random(&r) % 20;
            d[i] = (td_place_device){.budget_bytes =
                                         10 + next_random(&r) % (10 * (1 + n_layers / n) + 40),
                                     .fixed_bytes = next_random(&r) % 8,
                                     .first_bytes = next_random(&r) % 30,
                                     .last_bytes = next_random(&r) % 30,
                                     .layer_bytes = sizes[i]};
        }
        double best = best_share(d, n, n_layers);
        td_err err = {0};
        bool is_ok = td_place_layers(d, n, n_layers, &err);
        assert_int_equal(is_ok, best <= 1.0);
        if (!is_ok) {
            assert_int_equal(err.code, TD_E_NOMEM);
            continue;
        }
        n_feasible++;
        double worst = 0;
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(d[i].first, i ? d[i - 1].last + 1 : 0);
            assert_true(d[i].last >= d[i].first);
            double share = fill_of(&d[i], d[i].first, d[i].last, n_layers);
            worst = share > worst ? share : worst;
        }
        assert_int_equal(d[n - 1].last, n_layers - 1);
        if (worst > best)
            fail_msg("case %u: the fullest device is filled to %g, possible is %g", c, worst, best);
    }
    assert_in_range(n_feasible, n_cases / 5, n_cases * 4 / 5); /* the cases are worth something */
}

/* -- memory that devices share ------------------------------------------------------------ */

static bool has_room(const td_place_device *d, const uint32_t *lasts, uint32_t n, uint32_t n_layers)
{
    uint64_t of_system = 0, there = 0;
    uint32_t first = 0;
    for (uint32_t i = 0; i < n; first = lasts[i++] + 1) {
        uint64_t n_bytes = bytes_of(&d[i], first, lasts[i], n_layers);
        uint64_t own = d[i].budget_bytes - d[i].shared_bytes;
        if (n_bytes > d[i].budget_bytes)
            return false;
        of_system += d[i].shared_bytes && n_bytes > own ? n_bytes - own : 0;
        there = d[i].shared_bytes ? d[i].system_bytes : there;
    }
    return of_system <= there;
}

static bool is_possible(const td_place_device *d, uint32_t n, uint32_t n_layers)
{
    for (uint32_t cuts = 0; cuts < 1u << (n_layers - 1); cuts++) {
        uint32_t lasts[4], k = 0;
        if ((uint32_t)__builtin_popcount(cuts) != n - 1)
            continue;
        for (uint32_t i = 0; i < n_layers; i++)
            if (i + 1 == n_layers || cuts >> i & 1)
                lasts[k++] = i;
        if (has_room(d, lasts, n, n_layers))
            return true;
    }
    return false;
}

static void test_the_systems_memory_is_given_once_and_used_up(void **state)
{
    (void)state;
    uint64_t r = 5, sizes[4][10];
    uint32_t n_feasible = 0, n_cases = 6000;
    for (uint32_t c = 0; c < n_cases; c++) {
        uint32_t n = 2 + (uint32_t)(next_random(&r) % 3);
        uint32_t n_layers = n + (uint32_t)(next_random(&r) % (11 - n));
        uint64_t system = next_random(&r) % (20 * n_layers);
        td_place_device d[4] = {0};
        for (uint32_t i = 0; i < n; i++) {
            for (uint32_t k = 0; k < n_layers; k++)
                sizes[i][k] = 1 + next_random(&r) % 20;
            uint64_t shared = next_random(&r) % 3 ? next_random(&r) % (system + 1) : 0;
            d[i] = (td_place_device){.budget_bytes = shared + next_random(&r) % 50,
                                     .shared_bytes = shared,
                                     .system_bytes = system,
                                     .fixed_bytes = next_random(&r) % 4,
                                     .last_bytes = next_random(&r) % 20,
                                     .layer_bytes = sizes[i]};
        }
        uint32_t lasts[4];
        bool is_ok = td_place_layers(d, n, n_layers, NULL);
        assert_int_equal(is_ok, is_possible(d, n, n_layers));
        for (uint32_t i = 0; i < n; i++)
            lasts[i] = d[i].last;
        assert_true(!is_ok || has_room(d, lasts, n, n_layers));
        n_feasible += is_ok;
    }
    assert_in_range(n_feasible, n_cases / 5, n_cases * 4 / 5);
}

static void test_pinned_layers_take_of_the_system_too(void **state)
{
    (void)state;
    fill_layers(10 * MIB);
    td_place_device d[] = {pin(0, 7), pin(8, 15)};
    for (uint32_t i = 0; i < 2; i++) {
        d[i].budget_bytes = d[i].shared_bytes = 100 * MIB;
        d[i].system_bytes = 160 * MIB;
    }
    assert_true(td_place_layers(d, 2, 16, NULL));
    d[0].system_bytes = d[1].system_bytes = 159 * MIB;
    refuses(d, 2, 16, TD_E_NOMEM, "need 160 MiB of the system's memory");
    d[1].is_pinned = false;
    refuses(d, 2, 16, TD_E_NOMEM, "have 79 MiB");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_parses_names_and_ranges),
        cmocka_unit_test(test_spec_rejects_malformed_text),
        cmocka_unit_test(test_pins_and_free_devices_cover_all_layers_in_order),
        cmocka_unit_test(test_pins_that_do_not_fit_together_are_refused),
        cmocka_unit_test(test_a_pinned_device_that_is_too_small_is_named),
        cmocka_unit_test(test_three_unequal_devices_fill_evenly),
        cmocka_unit_test(test_what_does_not_fit_is_told_with_figures),
        cmocka_unit_test(test_placement_is_the_best_of_all_cuts),
        cmocka_unit_test(test_the_systems_memory_is_given_once_and_used_up),
        cmocka_unit_test(test_pinned_layers_take_of_the_system_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
