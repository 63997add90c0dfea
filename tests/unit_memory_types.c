/* Which memory a buffer goes to, by its use, on the described machines (tests/machines): inputs
 * where the GPU reads them without its bus, what the host reads in memory that its caches hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/vulkan/vk.h"
#include "planning/machine.h"

#include <stdio.h>
#include <string.h>

#define LOCAL   TD_MEMORY_DEVICE_LOCAL
#define VISIBLE (TD_MEMORY_HOST_VISIBLE | TD_MEMORY_HOST_COHERENT)
#define CACHED  TD_MEMORY_HOST_CACHED

static bool is_uma(const td_device_info *d)
{
    bool is_so = td_capacity_is_shared(d->kind) && d->memory.n_heaps > 0;
    for (uint32_t i = 0; i < d->memory.n_heaps; i++)
        is_so &= d->capacity.heaps[i].is_host_visible;
    return is_so;
}

/* The flags of the type that suits best; 0: none does. */
static uint32_t best(const td_device_info *d, td_vk_use use)
{
    int most = 0;
    uint32_t flags = 0;
    for (uint32_t i = 0; i < d->memory.n_types; i++) {
        int score = td_vk_memory_score(d->memory.types[i].flags, use, d->kind, is_uma(d));
        if (score > most) {
            most = score;
            flags = d->memory.types[i].flags;
        }
    }
    return flags;
}

static void check_device(const char *file, const td_device_info *d)
{
    uint32_t input = best(d, TD_VK_USE_INPUT), host = best(d, TD_VK_USE_HOST);
    uint32_t weights = best(d, TD_VK_USE_DEVICE);
    bool has_local = false, has_cached = false;
    for (uint32_t i = 0; i < d->memory.n_types; i++) {
        uint32_t flags = d->memory.types[i].flags;
        bool is_usable = td_capacity_is_usable_type(flags) && (flags & VISIBLE) == VISIBLE;
        has_local |= is_usable && (flags & LOCAL);
        has_cached |= is_usable && (flags & CACHED);
    }
    if (!(weights & LOCAL))
        fail_msg("%s: %s: weights lie in %x", file, d->spec, weights);
    if ((input & VISIBLE) != VISIBLE || (has_local && !(input & LOCAL)))
        fail_msg("%s: %s: inputs lie in %x", file, d->spec, input);
    if ((host & VISIBLE) != VISIBLE || (has_cached && !(host & CACHED)))
        fail_msg("%s: %s: what the host reads lies in %x", file, d->spec, host);
    if (d->kind == TD_DEVICE_DISCRETE && (host & LOCAL))
        fail_msg("%s: %s: the host reads through the bus, %x", file, d->spec, host);
}

static void test_each_use_has_its_memory_on_each_machine(void **state)
{
    (void)state;
    static const char *const names[] = {"strix-halo-0.5-3090",
                                        "strix-halo-96-3090",
                                        "strix-halo-0.5-5070ti",
                                        "780m-4060",
                                        "7900xtx-4090",
                                        "radv-amdvlk",
                                        "nvidia",
                                        "arc-890m"};
    for (size_t k = 0; k < TD_COUNT(names); k++) {
        char path[256];
        td_err err = {0};
        snprintf(path, sizeof path, "tests/machines/%s.json", names[k]);
        td_machine *m = td_machine_open(path, &err);
        if (!m)
            fail_msg("%s", err.message);
        assert_true(m->n_devices > 1);
        for (uint32_t i = 1; i < m->n_devices; i++)
            check_device(names[k], &m->devices[i]);
        td_machine_close(&m);
    }
}

static void test_a_card_without_a_window_keeps_inputs_in_cached_memory(void **state)
{
    (void)state;
    td_device_info d = {.kind = TD_DEVICE_DISCRETE, .memory = {.n_heaps = 2, .n_types = 3}};
    d.memory.types[0].flags = LOCAL;
    d.memory.types[1].flags = VISIBLE;
    d.memory.types[2].flags = VISIBLE | CACHED;
    assert_int_equal(best(&d, TD_VK_USE_INPUT), VISIBLE | CACHED);
    assert_int_equal(best(&d, TD_VK_USE_HOST), VISIBLE | CACHED);
    /* Where the window is full the next best type is asked: the same as without it. */
    assert_true(td_vk_memory_score(VISIBLE | CACHED, TD_VK_USE_INPUT, d.kind, false) <
                td_vk_memory_score(VISIBLE | LOCAL, TD_VK_USE_INPUT, d.kind, false));
}

static void test_memory_that_is_not_meant_for_buffers_is_never_used(void **state)
{
    (void)state;
    static const uint32_t bad[] = {TD_MEMORY_LAZY, TD_MEMORY_PROTECTED, TD_MEMORY_UNCACHED};
    for (size_t i = 0; i < TD_COUNT(bad); i++)
        for (int use = TD_VK_USE_DEVICE; use <= TD_VK_USE_INPUT; use++)
            assert_int_equal(td_vk_memory_score(LOCAL | VISIBLE | CACHED | bad[i], (td_vk_use)use,
                                                TD_DEVICE_DISCRETE, false),
                             0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_use_has_its_memory_on_each_machine),
        cmocka_unit_test(test_a_card_without_a_window_keeps_inputs_in_cached_memory),
        cmocka_unit_test(test_memory_that_is_not_meant_for_buffers_is_never_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
