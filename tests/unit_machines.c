/* Machines that are described and not here (tests/machines): what their devices can hold is what
 * was worked out by hand in the files, and hostile files are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/io.h"
#include "base/mem.h"
#include "kernels/chips.h"
#include "planning/machine_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "tests/machines/"
#define MIB    ((uint64_t)1 << 20)
#define GIB    ((uint64_t)1 << 30)

static const char *const names[] = {"strix-halo-0.5",
                                    "strix-halo-0.5-default",
                                    "strix-halo-64",
                                    "strix-halo-96",
                                    "strix-halo-0.5-3090",
                                    "strix-halo-96-3090",
                                    "strix-halo-0.5-5070ti",
                                    "strix-halo-64-3090",
                                    "strix-halo-64-5070ti",
                                    "strix-halo-96-5070ti",
                                    "780m-4060",
                                    "7900xtx-4090",
                                    "radv-amdvlk",
                                    "nvidia",
                                    "arc-890m"};

static td_machine *open_machine(const char *name)
{
    char path[256];
    td_err err = {0};
    snprintf(path, sizeof path, FOLDER "%s.json", name);
    td_machine *m = td_machine_open(path, &err);
    if (!m)
        fail_msg("%s", err.message);
    return m;
}

static void test_usable_bytes_are_the_sums_made_by_hand(void **state)
{
    (void)state;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        td_machine *m = open_machine(names[i]);
        assert_true(m->n_devices > 1);
        for (uint32_t d = 0; d < m->n_devices; d++) {
            const td_capacity *c = &m->devices[d].capacity;
            double mib = (double)c->usable_bytes / (double)MIB;
            assert_true(m->expect_devices[d].has_usable);
            if (fabs(mib - m->expect_devices[d].usable_mib) > 1)
                fail_msg("%s: %s: %.1f MiB (%s), by hand %.1f: %s", names[i], m->devices[d].name,
                         mib, c->reason, m->expect_devices[d].usable_mib, m->expect_devices[d].why);
            assert_true(c->own_bytes + c->shared_bytes == c->usable_bytes);
            assert_true(c->most_bytes >= c->usable_bytes);
            /* What the allocator grants heap by heap is enough for what is planned with. */
            uint64_t heaps = 0;
            for (uint32_t h = 0; h < m->devices[d].memory.n_heaps; h++)
                heaps += c->heaps[h].is_counted ? c->heaps[h].most_bytes : 0;
            assert_true(heaps >= c->usable_bytes);
        }
        td_machine_close(&m);
    }
}

static void test_the_hint_is_the_limit_that_binds(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        td_capacity_limit limit;
        const char *hint; /* part of it; "" none */
    } rows[] = {{"strix-halo-0.5", TD_LIMIT_SYSTEM, ""},
                {"strix-halo-0.5-default", TD_LIMIT_GTT, "ttm.pages_limit="},
                {"strix-halo-64", TD_LIMIT_GTT, "ttm.pages_limit="},
                {"strix-halo-96", TD_LIMIT_GTT, "ttm.pages_limit="},
                {"nvidia", TD_LIMIT_DEVICE, ""}};
    for (size_t i = 0; i < TD_COUNT(rows); i++) {
        td_machine *m = open_machine(rows[i].name);
        const td_capacity *c = &m->devices[1].capacity;
        assert_int_equal(c->limit, rows[i].limit);
        assert_true(rows[i].hint[0] ? strstr(c->hint, rows[i].hint) != NULL : !c->hint[0]);
        td_machine_close(&m);
    }
}

/* The placement of a stream as layers on each device of the file, the host last. */
static void count_layers(const td_machine_plan *p, const td_speed_row *r, uint32_t *layers)
{
    memset(layers, 0, TD_SPEED_DEVICES_MAX * sizeof *layers);
    for (uint32_t i = 0; i < r->n_stages; i++) {
        uint32_t index = p->indices[r->stages[i].device];
        uint32_t at = index ? index - 1 : p->machine->n_devices - 1;
        layers[at] = r->stages[i].last - r->stages[i].first + 1;
    }
}

static void check_expectation(td_machine_plan *p, const char *name, const td_machine_expect *e)
{
    const td_hardware_model *model = td_hardware_find(p->hardware, e->model);
    td_machine_outlook o;
    td_err err = {0};
    assert_non_null(model);
    assert_true(td_machine_plan_model(p, model, &o, &err));
    if (o.outlook.fits_stream != e->fits)
        fail_msg("%s: %s %s; by hand: %s", name, e->model,
                 o.outlook.fits_stream ? "fits" : "does not fit", e->why);
    double missing = (o.wanted_bytes - o.there_bytes) / (double)MIB;
    if (!e->fits && fabs(missing - e->missing_mib) > 3)
        fail_msg("%s: %s: %.1f MiB are missing; by hand: %s", name, e->model, missing, e->why);
    if (!e->fits)
        return;
    uint32_t layers[TD_SPEED_DEVICES_MAX];
    count_layers(p, &o.outlook.stream, layers);
    assert_int_equal(e->n_layers, p->machine->n_devices);
    for (uint32_t i = 0; i < e->n_layers; i++)
        if (layers[i] != e->layers[i])
            fail_msg("%s: %s: device %u has %u layers; by hand %u: %s", name, e->model, i,
                     layers[i], e->layers[i], e->why);
    const td_speed_row *drafted = &o.outlook.drafted;
    const char *on = drafted->k ? p->hardware->devices[drafted->i_draft].name : "";
    if (e->draft_device[0] && strncmp(on, e->draft_device, TD_HARDWARE_NAME_MAX - 1))
        fail_msg("%s: %s: the draft is on \"%s\"; by hand: %s", name, e->model, on, e->why);
}

static void test_layers_go_where_they_go_by_hand(void **state)
{
    (void)state;
    uint32_t n = 0;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        td_machine *m = open_machine(names[i]);
        td_err err = {0};
        td_machine_plan *p = td_machine_plan_create(m, "configs/hardware/models.json", &err);
        assert_non_null(p);
        for (uint32_t k = 0; k < m->n_expects; k++, n++)
            check_expectation(p, names[i], &m->expects[k]);
        td_machine_plan_destroy(&p);
        td_machine_close(&m);
    }
    assert_true(n == 4 * TD_COUNT(names));
}

static bool has_vendor(const td_machine *m, const char *vendor)
{
    for (uint32_t i = 0; i < m->n_devices; i++)
        if (!strcasecmp(m->devices[i].vendor, vendor))
            return true;
    return false;
}

/* What the shipped configurations name means one device wherever there is one. */
static void test_configurations_find_their_devices(void **state)
{
    (void)state;
    static const char *const vendors[] = {"amd", "nvidia"};
    uint32_t n_found = 0;
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        td_machine *m = open_machine(names[i]);
        for (size_t k = 0; k < TD_COUNT(vendors); k++) {
            uint32_t index = 0;
            td_err err = {0};
            bool is_found = td_chips_find(m->devices, m->n_devices, vendors[k], &index, &err);
            assert_int_equal(is_found, has_vendor(m, vendors[k]));
            n_found += is_found;
            if (is_found) {
                assert_int_equal(strcasecmp(m->devices[index].vendor, vendors[k]), 0);
                assert_string_equal(m->devices[index].same_as, ""); /* the preferred driver's */
            }
        }
        td_machine_close(&m);
    }
    assert_true(n_found >= TD_COUNT(names));
}

/* 128 GB, cut between carve-out and system in any way; what the driver tells follows. */
static td_memory_facts apu(uint64_t carved, bool has_amdgpu)
{
    uint64_t installed = 128 * GIB, gtt;
    td_memory_facts f = {.kind = TD_DEVICE_INTEGRATED, .is_amd = true, .n_heaps = 2};
    f.system_bytes = installed - carved - 2 * GIB;
    f.available_bytes = f.system_bytes - 3 * GIB;
    gtt = f.system_bytes / 16 * 15;
    f.has_amdgpu = has_amdgpu;
    f.vram_bytes = carved;
    f.gtt_bytes = gtt;
    f.heaps[1].is_device_local = true;
    f.heaps[1].n_bytes = f.heaps[1].budget_bytes = (carved + gtt) / 3 * 2;
    f.heaps[0].n_bytes = f.heaps[0].budget_bytes = carved + gtt - f.heaps[1].n_bytes;
    return f;
}

static void test_a_larger_carve_out_takes_nothing_away(void **state)
{
    (void)state;
    for (uint64_t carved = GIB / 2; carved <= 112 * GIB; carved += GIB / 2) {
        td_memory_facts f = apu(carved, true), blind = apu(carved, false);
        td_capacity c, estimate;
        td_capacity_find(&f, &c);
        td_capacity_find(&blind, &estimate);
        assert_true(c.usable_bytes > 108 * GIB); /* of 128, however it is cut */
        assert_true(c.own_bytes > carved / 100 * 95);
        /* Less free memory of the system does not make the carve-out smaller. */
        uint64_t own = c.own_bytes;
        f.available_bytes = GIB;
        td_capacity_find(&f, &c);
        assert_true(c.own_bytes == own);
        assert_true(c.shared_bytes <= GIB && c.limit == TD_LIMIT_SYSTEM);
        /* Without the kernel's numbers less is promised, but not much less. */
        assert_true(estimate.usable_bytes > 96 * GIB && estimate.usable_bytes < 128 * GIB);
    }
}

static void test_software_draws_on_the_system(void **state)
{
    (void)state;
    td_memory_facts f = {.kind = TD_DEVICE_SOFTWARE, .n_heaps = 1};
    f.heaps[0].n_bytes = 64 * GIB;
    f.heaps[0].is_device_local = true;
    f.system_bytes = 16 * GIB;
    f.available_bytes = 10 * GIB;
    td_capacity c;
    td_capacity_find(&f, &c);
    assert_true(c.own_bytes == 0 && c.shared_bytes == c.usable_bytes);
    assert_true(c.usable_bytes == c.system_bytes && c.usable_bytes < 10 * GIB);
    f.heaps[0].budget_bytes = 1 << 20; /* tiny: the reserve shrinks with it */
    td_capacity_find(&f, &c);
    assert_true(c.usable_bytes > 900000 && c.usable_bytes < 1 << 20);
    assert_int_equal(c.limit, TD_LIMIT_DRIVER);
}

static void test_nothing_is_usable_of_nothing(void **state)
{
    (void)state;
    for (int kind = TD_DEVICE_HOST; kind <= TD_DEVICE_SOFTWARE; kind++) {
        td_memory_facts f = {.kind = (td_device_kind)kind};
        td_capacity c;
        td_capacity_find(&f, &c);
        assert_true(c.usable_bytes == 0 && c.most_bytes == 0);
    }
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_amdgpu_numbers_are_found_by_address(void **state)
{
    (void)state;
    static const char *const files[][2] = {{"mem_info_vram_total", "103079215104\n"},
                                           {"mem_info_vram_used", "268435456\n"},
                                           {"mem_info_gtt_total", "16288000000\n"},
                                           {"mem_info_gtt_used", "1048576\n"}};
    char root[] = "/tmp/td-sysfs-XXXXXX", path[256];
    td_memory_facts f = {.kind = TD_DEVICE_INTEGRATED};
    assert_non_null(mkdtemp(root));
    static const char *const folders[] = {"bus", "bus/pci", "bus/pci/devices",
                                          "bus/pci/devices/0000:c5:00.0"};
    for (size_t i = 0; i < TD_COUNT(folders); i++) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        assert_int_equal(mkdir(path, 0755), 0);
    }
    for (size_t i = 0; i < TD_COUNT(files); i++) {
        assert_false(td_capacity_read_amdgpu(root, "0000:c5:00.0", &f)); /* not all are there */
        snprintf(path, sizeof path, "%s/%s/%s", root, folders[3], files[i][0]);
        write_file(path, files[i][1]);
    }
    assert_true(td_capacity_read_amdgpu(root, "0000:c5:00.0", &f));
    assert_true(f.vram_bytes == 96 * GIB && f.vram_used_bytes == GIB / 4);
    assert_true(f.gtt_bytes == 16288000000 && f.gtt_used_bytes == MIB);
    assert_false(td_capacity_read_amdgpu(root, "0000:01:00.0", &f));
    assert_false(td_capacity_read_amdgpu(root, "", &f));
    for (size_t i = 0; i < TD_COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s/%s", root, folders[3], files[i][0]);
        unlink(path);
    }
    for (size_t i = TD_COUNT(folders); i-- > 0;) {
        snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        rmdir(path);
    }
    rmdir(root);
}

/* -- hostile files ----------------------------------------------------------------------------- */

#define HOST                                                                                       \
    "\"host\": {\"cpu\": \"c\", \"threads\": 4, \"bandwidth_gb_s\": 50, \"tflops\": 1, "           \
    "\"total_mib\": 1000, \"available_mib\": 900}"
#define DEVICE(more)                                                                               \
    "{\"about\": \"a\", " HOST ", \"devices\": [{\"name\": \"n\", \"kind\": \"discrete\", "        \
    "\"vendor_id\": 1, \"driver_id\": 1, \"driver\": \"d\", \"bandwidth_gb_s\": 50, "              \
    "\"tflops\": 1" more "}]}"

static void expect_refused(const char *text, const char *part)
{
    char path[] = "/tmp/td-machine-XXXXXX";
    td_err err = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    write_file(path, text);
    td_machine *m = td_machine_open(path, &err);
    unlink(path);
    if (m || err.code != TD_E_DATA || !strstr(err.message, part))
        fail_msg("\"%s\" in \"%s\" is expected of %s", part, err.message, text);
}

static void test_hostile_files_are_refused_by_name(void **state)
{
    (void)state;
    expect_refused("{", "");
    expect_refused("[]", "");
    expect_refused("{\"about\": \"a\"}", "host");
    expect_refused("{\"about\": \"a\", " HOST "}", "devices");
    expect_refused(DEVICE(""), "heaps");
    expect_refused(DEVICE(", \"heaps\": [{\"mib\": -1, \"device_local\": true}]"), "mib");
    expect_refused(DEVICE(", \"heaps\": [{\"mib\": 1e30, \"device_local\": true}]"), "mib");
    expect_refused(DEVICE(", \"heaps\": [{\"mib\": 9223372036854775807, \"device_local\": true}]"),
                   "mib");
    expect_refused(DEVICE(", \"heaps\": [{\"mib\": 5}]"), "device_local");
    expect_refused(DEVICE(", \"heaps\": [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, "
                          "{}, {}, {}]"),
                   "heaps");
    expect_refused(DEVICE(", \"heaps\": [], \"types\": [{\"heap\": 0, \"flags\": []}]"), "heap");
    expect_refused(DEVICE(", \"heaps\": [{\"mib\": 5, \"device_local\": true}], "
                          "\"types\": [{\"heap\": 0, \"flags\": [\"fast\"]}]"),
                   "\"fast\"");
    expect_refused(DEVICE(", \"heaps\": [], \"pci\": \"c5:00\""), "pci");
    expect_refused(DEVICE(", \"heaps\": [], \"uuid\": \"xyz\""), "uuid");
    expect_refused(DEVICE(", \"heaps\": [], \"amdgpu\": {\"vram_total_mib\": 5}"), "vram_used_mib");
    expect_refused(DEVICE(", \"heaps\": [], \"surprise\": 5"), "surprise");
    expect_refused(DEVICE(", \"heaps\": [], \"max_storage_buffer_range\": 0"),
                   "max_storage_buffer_range");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_usable_bytes_are_the_sums_made_by_hand),
        cmocka_unit_test(test_layers_go_where_they_go_by_hand),
        cmocka_unit_test(test_configurations_find_their_devices),
        cmocka_unit_test(test_the_hint_is_the_limit_that_binds),
        cmocka_unit_test(test_a_larger_carve_out_takes_nothing_away),
        cmocka_unit_test(test_software_draws_on_the_system),
        cmocka_unit_test(test_nothing_is_usable_of_nothing),
        cmocka_unit_test(test_amdgpu_numbers_are_found_by_address),
        cmocka_unit_test(test_hostile_files_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
