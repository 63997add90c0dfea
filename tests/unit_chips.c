/* Which chip a device is and which device a SPEC means, over lists as drivers make them: one GPU
 * under several drivers, cards of one make, software, devices without address or UUID. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "kernels/chips.h"
#include "planning/machine.h"
#include "planning/placement.h"
#include "planning/planner.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

enum {
    AMD_PRO = 1,
    AMDVLK = 2,
    RADV = 3,
    NVIDIA = 4,
    ANV = 6,
    LLVMPIPE = 13,
    NVK = 24,
    DOZEN = 23
};
#define AMD_ID    0x1002u
#define NVIDIA_ID 0x10deu
#define INTEL_ID  0x8086u
#define MESA_ID   0x10005u

typedef struct {
    uint32_t n;
    td_device_info infos[TD_DEVICES_MAX];
} list;

static td_device_info *add(list *l, const char *name, td_device_kind kind, uint32_t vendor_id,
                           uint32_t driver_id, const char *pci, const char *uuid)
{
    td_device_info *d = &l->infos[l->n];
    *d = (td_device_info){
        .kind = kind, .vendor_id = vendor_id, .driver_id = driver_id, .is_usable = true};
    snprintf(d->spec, sizeof d->spec, "vulkan:%u", l->n++);
    snprintf(d->name, sizeof d->name, "%s", name);
    snprintf(d->pci, sizeof d->pci, "%s", pci);
    snprintf(d->uuid, sizeof d->uuid, "%s", uuid);
    snprintf(d->vendor, sizeof d->vendor, "%s", td_chips_vendor(vendor_id));
    return d;
}

#define APU_PCI   "0000:c1:00.0"
#define APU_UUID  "00000000-c100-0000-0000-000000000000"
#define CARD_PCI  "0000:01:00.0"
#define CARD_UUID "11111111-2222-3333-4444-555555555555"

/* A Strix Halo under AMDVLK and RADV, a 3090 under NVIDIA's driver, and llvmpipe. */
static list desktop(void)
{
    list l = {0};
    add(&l, "AMD Radeon Graphics", TD_DEVICE_INTEGRATED, AMD_ID, AMDVLK, APU_PCI, APU_UUID);
    add(&l, "Radeon 8060S Graphics (RADV GFX1151)", TD_DEVICE_INTEGRATED, AMD_ID, RADV, APU_PCI,
        APU_UUID);
    add(&l, "NVIDIA GeForce RTX 3090", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, CARD_PCI, CARD_UUID);
    add(&l, "llvmpipe (LLVM 15.0.6, 256 bits)", TD_DEVICE_SOFTWARE, MESA_ID, LLVMPIPE, "",
        "6d657361-3233-2e32-0000-000000000000");
    td_chips_mark(l.infos, l.n);
    return l;
}

static void expect(const list *l, const char *which, const char *spec)
{
    td_err err = {0};
    uint32_t index = UINT32_MAX;
    if (!td_chips_find(l->infos, l->n, which, &index, &err))
        fail_msg("vulkan:%s: %s", which, err.message);
    assert_true(index < l->n);
    if (strcmp(l->infos[index].spec, spec) != 0)
        fail_msg("vulkan:%s is %s, expected %s", which, l->infos[index].spec, spec);
}

static void refuse(const list *l, const char *which, const char *word)
{
    td_err err = {0};
    uint32_t index;
    assert_false(td_chips_find(l->infos, l->n, which, &index, &err));
    assert_int_equal(err.code, TD_E_USAGE);
    if (!strstr(err.message, word))
        fail_msg("vulkan:%s: \"%s\" does not say \"%s\"", which, err.message, word);
}

static void expect_same_as(const list *l, uint32_t i, const char *spec)
{
    if (strcmp(l->infos[i].same_as, spec) != 0)
        fail_msg("%s is the same as \"%s\", expected \"%s\"", l->infos[i].spec, l->infos[i].same_as,
                 spec);
}

static void test_one_chip_under_two_drivers_is_used_once(void **state)
{
    (void)state;
    list l = desktop();
    uint32_t order[TD_DEVICES_MAX];
    expect_same_as(&l, 0, "vulkan:1");
    for (uint32_t i = 1; i < l.n; i++)
        expect_same_as(&l, i, "");
    assert_int_equal(td_chips_default(l.infos, l.n, order), 2);
    assert_int_equal(order[0], 2); /* discrete first */
    assert_int_equal(order[1], 1); /* RADV's */
    assert_true(td_chips_is_one(&l.infos[0], &l.infos[1]));
    assert_false(td_chips_is_one(&l.infos[1], &l.infos[2]));
}

static void test_drivers_are_preferred_in_this_order(void **state)
{
    (void)state;
    static const struct {
        uint32_t vendor, better, worse;
    } pairs[] = {
        {AMD_ID, RADV, AMDVLK},   {AMD_ID, AMDVLK, AMD_PRO}, {AMD_ID, RADV, AMD_PRO},
        {NVIDIA_ID, NVIDIA, NVK}, {INTEL_ID, ANV, 5},        {INTEL_ID, ANV, DOZEN},
        {INTEL_ID, 12345, DOZEN}, {AMD_ID, RADV, 12345},
    };
    for (size_t i = 0; i < TD_COUNT(pairs); i++)
        for (uint32_t is_swapped = 0; is_swapped < 2; is_swapped++) {
            list l = {0};
            uint32_t first = is_swapped ? pairs[i].worse : pairs[i].better;
            uint32_t second = is_swapped ? pairs[i].better : pairs[i].worse;
            /* Not all drivers tell one UUID for a chip. */
            add(&l, "a", TD_DEVICE_DISCRETE, pairs[i].vendor, first, CARD_PCI, CARD_UUID);
            add(&l, "b", TD_DEVICE_DISCRETE, pairs[i].vendor, second, CARD_PCI, APU_UUID);
            td_chips_mark(l.infos, l.n);
            expect_same_as(&l, is_swapped ? 0 : 1, is_swapped ? "vulkan:1" : "vulkan:0");
            expect_same_as(&l, is_swapped ? 1 : 0, "");
        }
}

static void test_what_cannot_be_used_is_not_preferred(void **state)
{
    (void)state;
    list l = {0};
    uint32_t order[TD_DEVICES_MAX];
    add(&l, "a", TD_DEVICE_DISCRETE, AMD_ID, RADV, CARD_PCI, "")->is_usable = false;
    add(&l, "b", TD_DEVICE_DISCRETE, AMD_ID, AMDVLK, CARD_PCI, "");
    td_chips_mark(l.infos, l.n);
    expect_same_as(&l, 0, "vulkan:1");
    expect_same_as(&l, 1, "");
    assert_int_equal(td_chips_default(l.infos, l.n, order), 1);
    assert_int_equal(order[0], 1);
    expect(&l, "amd", "vulkan:1");
    expect(&l, "0", "vulkan:0"); /* so that an error says why not */
}

static void test_three_drivers_of_one_chip_name_the_best(void **state)
{
    (void)state;
    list l = {0};
    add(&l, "a", TD_DEVICE_INTEGRATED, AMD_ID, AMD_PRO, APU_PCI, "");
    add(&l, "b", TD_DEVICE_INTEGRATED, AMD_ID, AMDVLK, APU_PCI, APU_UUID);
    add(&l, "c", TD_DEVICE_INTEGRATED, AMD_ID, RADV, "", APU_UUID); /* tells no address */
    td_chips_mark(l.infos, l.n);
    expect_same_as(&l, 0, "vulkan:2");
    expect_same_as(&l, 1, "vulkan:2");
    expect_same_as(&l, 2, "");
}

static void test_different_chips_stay_apart(void **state)
{
    (void)state;
    list l = {0};
    uint32_t order[TD_DEVICES_MAX];
    /* Two cards of one make; two whose driver gives all the same UUID; two without either. */
    add(&l, "card", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, "0000:01:00.0", CARD_UUID);
    add(&l, "card", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, "0000:02:00.0", APU_UUID);
    add(&l, "x", TD_DEVICE_DISCRETE, AMD_ID, RADV, "0000:03:00.0", "same");
    add(&l, "y", TD_DEVICE_DISCRETE, AMD_ID, RADV, "0001:03:00.0", "same");
    add(&l, "z", TD_DEVICE_VIRTUAL, INTEL_ID, 22, "", "");
    add(&l, "z", TD_DEVICE_VIRTUAL, INTEL_ID, 22, "", "");
    /* Parts of one card, as its driver tells them apart. */
    add(&l, "part", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, "0000:05:00.0", "part 1");
    add(&l, "part", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, "0000:05:00.0", "part 2");
    td_chips_mark(l.infos, l.n);
    for (uint32_t i = 0; i < l.n; i++)
        expect_same_as(&l, i, "");
    assert_int_equal(td_chips_default(l.infos, l.n, order), 8);
}

static void test_software_drivers_are_no_chips(void **state)
{
    (void)state;
    list l = {0};
    uint32_t order[TD_DEVICES_MAX];
    add(&l, "llvmpipe", TD_DEVICE_SOFTWARE, MESA_ID, LLVMPIPE, "", "same");
    add(&l, "swiftshader", TD_DEVICE_SOFTWARE, MESA_ID, 10, "", "same");
    td_chips_mark(l.infos, l.n);
    expect_same_as(&l, 0, "");
    expect_same_as(&l, 1, "");
    assert_int_equal(td_chips_default(l.infos, l.n, order), 0);
}

static void test_one_driver_listed_twice_is_one_device(void **state)
{
    (void)state;
    list l = {0};
    add(&l, "card", TD_DEVICE_DISCRETE, AMD_ID, RADV, CARD_PCI, CARD_UUID);
    add(&l, "card", TD_DEVICE_DISCRETE, AMD_ID, RADV, CARD_PCI, CARD_UUID); /* another Mesa */
    td_chips_mark(l.infos, l.n);
    expect_same_as(&l, 1, "vulkan:0");
    assert_string_equal(l.infos[0].id, "vulkan:pci:" CARD_PCI);
    assert_string_equal(l.infos[1].id, "vulkan:1"); /* nothing else tells it apart */
}

static void test_a_vendor_is_told_by_its_number(void **state)
{
    (void)state;
    list l = desktop();
    expect(&l, "amd", "vulkan:1"); /* "AMD" is in the name of the other only */
    expect(&l, "AMD", "vulkan:1");
    expect(&l, "nvidia", "vulkan:2");
    expect(&l, "mesa", "vulkan:3");
    refuse(&l, "intel", "does not exist");
    refuse(&l, "intel", "Radeon 8060S");
    expect(&l, "amd:amdvlk", "vulkan:0");
    expect(&l, "amd:RADV", "vulkan:1");
    refuse(&l, "amd:nvk", "does not exist");
}

static void test_a_part_of_the_name_still_finds_a_device(void **state)
{
    (void)state;
    list l = desktop();
    expect(&l, "8060s", "vulkan:1");
    expect(&l, "AMD Radeon", "vulkan:0"); /* the only one of that name */
    expect(&l, "Radeon", "vulkan:1");     /* both have it: the driver that is preferred */
    expect(&l, "rtx", "vulkan:2");
    refuse(&l, "g", "ambiguous");
    refuse(&l, "g", "vulkan:pci:" APU_PCI);
    refuse(&l, "g", "vulkan:pci:" CARD_PCI);
    refuse(&l, "no such thing", "vulkan:3 (llvmpipe");
}

static void test_two_cards_of_a_vendor_are_named_in_the_error(void **state)
{
    (void)state;
    list l = desktop();
    add(&l, "NVIDIA GeForce RTX 4090", TD_DEVICE_DISCRETE, NVIDIA_ID, NVIDIA, "0000:02:00.0",
        "33333333-2222-3333-4444-555555555555");
    td_chips_mark(l.infos, l.n);
    refuse(&l, "nvidia", "ambiguous");
    refuse(&l, "nvidia", "vulkan:pci:0000:01:00.0 (NVIDIA GeForce RTX 3090)");
    refuse(&l, "nvidia", "vulkan:pci:0000:02:00.0 (NVIDIA GeForce RTX 4090)");
    expect(&l, "pci:0000:02:00.0", "vulkan:4");
    expect(&l, "rtx 4090", "vulkan:4");
}

static void test_addresses_and_uuids_find_a_device(void **state)
{
    (void)state;
    list l = desktop();
    expect(&l, "pci:0000:c1:00.0", "vulkan:1");
    expect(&l, "pci:c1:00.0", "vulkan:1");
    expect(&l, "PCI:0:C1:0.0", "vulkan:1");
    expect(&l, "pci:c1:00.0:amdvlk", "vulkan:0");
    expect(&l, "pci:0000:c1:00.0:radv", "vulkan:1");
    expect(&l, "uuid:" CARD_UUID, "vulkan:2");
    expect(&l, "uuid:GPU-" CARD_UUID, "vulkan:2");
    expect(&l, "uuid:11111111222233334444555555555555", "vulkan:2");
    expect(&l, "uuid:" APU_UUID ":amdvlk", "vulkan:0");
    refuse(&l, "pci:0000:c2:00.0", "does not exist");
    assert_string_equal(l.infos[1].id, "vulkan:pci:" APU_PCI);
    assert_string_equal(l.infos[0].id, "vulkan:pci:" APU_PCI ":amdvlk");
    assert_string_equal(l.infos[3].id, "vulkan:3"); /* software: there is only its index */
    l.infos[2].pci[0] = 0;
    td_chips_mark(l.infos, l.n);
    assert_string_equal(l.infos[2].id, "vulkan:uuid:" CARD_UUID);
}

static void test_ids_mean_the_same_device_in_another_order(void **state)
{
    (void)state;
    list l = desktop(), turned = {0};
    for (uint32_t i = l.n; i-- > 0;) {
        turned.infos[turned.n] = l.infos[i];
        snprintf(turned.infos[turned.n].spec, sizeof l.infos[0].spec, "vulkan:%u", turned.n);
        turned.n++;
    }
    td_chips_mark(turned.infos, turned.n);
    for (uint32_t i = 0; i < l.n; i++) {
        uint32_t k;
        if (l.infos[i].kind == TD_DEVICE_SOFTWARE)
            continue;
        assert_true(td_chips_find(turned.infos, turned.n, l.infos[i].id + 7, &k, NULL));
        assert_int_equal(k, l.n - 1 - i);
        assert_string_equal(turned.infos[k].id, l.infos[i].id);
    }
}

static void test_hostile_specs_are_refused(void **state)
{
    (void)state;
    list l = desktop();
    static const char *const bad[] = {
        "pci:",
        "pci:c1",
        "pci:c1:",
        "pci:c1:00",
        "pci:c1:00.",
        "pci:c1:00.8",
        "pci:c1:20.0",
        "pci:0:100:00.0",
        "pci:100000000:c1:00.0",
        "pci:0000:c1:00.0x",
        "pci:0000:c1:00.0:",
        "pci: 0000:c1:00.0",
        "pci:0000:c1:00.0 ",
        "pci:-1:00.0",
        "pci:0x1:00.0",
        "pci:zz:zz.z",
        "pci:::.",
        "pci:0:0:0:0.0",
        "uuid:",
        "uuid:1",
        "uuid:-" CARD_UUID,
        "uuid:" CARD_UUID "0",
        "uuid:" CARD_UUID "-",
        "uuid:" CARD_UUID ":",
        "uuid:gggggggg-2222-3333-4444-555555555555",
        "uuid:GPU-",
        "amd:",
        "nvidia:x",
        "4",
        "00004",
        "4294967296",
        "18446744073709551616",
        "99999999999999999999999999999999999999",
        "-1",
        "+0",
        "0x0",
        "1e0",
        "%s%n",
        "\x01\xff",
    };
    for (size_t i = 0; i < TD_COUNT(bad); i++)
        refuse(&l, bad[i], "vulkan:");
    char long_name[4096];
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    refuse(&l, long_name, "does not exist");
    memset(long_name, '1', sizeof long_name - 1);
    refuse(&l, long_name, "does not exist");
    memcpy(long_name, "uuid:", 5);
    refuse(&l, long_name, "behind it");
    refuse(&(list){0}, "amd", "no Vulkan devices");
    expect(&l, "0002", "vulkan:2");
}

static void test_specs_with_colons_take_layers(void **state)
{
    (void)state;
    td_device_spec spec;
    td_err err = {0};
    assert_true(td_device_spec_parse("vulkan:pci:0000:c1:00.0@0-11", &spec, &err));
    assert_string_equal(spec.device, "vulkan:pci:0000:c1:00.0");
    assert_int_equal(spec.last, 11);
    assert_true(td_device_spec_parse("vulkan:uuid:" CARD_UUID ":nvk@3-3", &spec, &err));
    assert_string_equal(spec.device, "vulkan:uuid:" CARD_UUID ":nvk");
    assert_false(td_device_spec_parse("vulkan:pci:0000:c1:00.0@", &spec, &err));
}

static void test_addresses_of_zeros_are_nobodys(void **state)
{
    (void)state;
    char pci[TD_PCI_BYTES], uuid[TD_UUID_BYTES];
    td_chips_write_pci(0, 0, 0, 0, pci);
    assert_string_equal(pci, "");
    td_chips_write_pci(0x10000, 0xc1, 0x1f, 7, pci);
    assert_string_equal(pci, "10000:c1:1f.7");
    td_chips_write_uuid((const uint8_t[16]){0}, uuid);
    assert_string_equal(uuid, "");
    td_chips_write_uuid((const uint8_t[16]){1, 2, [6] = 0xab, [15] = 255}, uuid);
    assert_string_equal(uuid, "01020000-0000-ab00-0000-0000000000ff");
}

static void test_a_draft_goes_to_a_chip_that_is_idle(void **state)
{
    (void)state;
    list l = desktop();
    td_device_info used[3] = {l.infos[0]}; /* the APU, by the driver that is not preferred */
    assert_int_equal(td_chips_idle(l.infos, l.n, used, 1), 2);
    used[1] = l.infos[2];
    assert_int_equal(td_chips_idle(l.infos, l.n, used, 2), l.n);
    assert_int_equal(td_chips_idle(l.infos, l.n, used + 1, 1), 1);
    assert_int_equal(td_chips_idle(l.infos, l.n, NULL, 0), 2);
    used[0] = (td_device_info){.kind = TD_DEVICE_HOST, .spec = "host:2"};
    assert_int_equal(td_chips_idle(l.infos, l.n, used, 2), 1);
}

static void test_drivers_of_one_chip_take_turns(void **state)
{
    (void)state;
    list l = desktop();
    const td_device_info *a = &l.infos[0], *b = &l.infos[1], *card = &l.infos[2];
    assert_true(td_plan_is_one_unit("vulkan:0", a, "vulkan:amd", b));
    assert_false(td_plan_is_one_unit("vulkan:0", a, "vulkan:2", card));
}

/* -- machines that are described -------------------------------------------------------------- */

#define MACHINES  "tests/machines/"
#define SPECS_MAX 32u

/* The SPECs that the shipped configurations name GPUs by: "vulkan:..." without its quotes. */
static uint32_t read_config_specs(char specs[SPECS_MAX][64])
{
    uint32_t n = 0;
    DIR *folder = opendir("configs");
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder));) {
        char path[512], text[8192];
        size_t n_name = strlen(e->d_name);
        if (n_name < 5 || strcmp(e->d_name + n_name - 5, ".json") != 0)
            continue;
        snprintf(path, sizeof path, "configs/%s", e->d_name);
        FILE *f = fopen(path, "re");
        assert_non_null(f);
        text[fread(text, 1, sizeof text - 1, f)] = 0;
        fclose(f);
        for (const char *at = text; (at = strstr(at, "\"vulkan:")); at++) {
            assert_true(n < SPECS_MAX);
            snprintf(specs[n++], sizeof specs[0], "%.*s", (int)strcspn(at + 1, "\"@"), at + 1);
        }
    }
    closedir(folder);
    return n;
}

/* Chips of a vendor, each counted once. */
static uint32_t count_chips(const td_machine *m, uint32_t vendor_id, uint32_t *last)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_devices; i++)
        if (m->devices[i].vendor_id == vendor_id && m->devices[i].is_usable &&
            m->devices[i].kind != TD_DEVICE_SOFTWARE && !m->devices[i].same_as[0]) {
            *last = i;
            n++;
        }
    return n;
}

static void expect_on_machine(const char *file, const td_machine *m, const char *spec)
{
    static const struct {
        const char *name;
        uint32_t id;
    } vendors[] = {{"amd", AMD_ID}, {"nvidia", NVIDIA_ID}, {"intel", INTEL_ID}};
    uint32_t vendor_id = 0, wanted = 0, index = 0;
    td_err err = {0};
    for (size_t i = 0; i < TD_COUNT(vendors); i++)
        if (!strcmp(spec + 7, vendors[i].name))
            vendor_id = vendors[i].id;
    if (!vendor_id)
        fail_msg("%s is no vendor: on another machine it may mean nothing", spec);
    uint32_t n_chips = count_chips(m, vendor_id, &wanted);
    bool is_found = td_chips_find(m->devices, m->n_devices, spec + 7, &index, &err);
    if (n_chips == 1 && (!is_found || index != wanted))
        fail_msg("%s: %s: %s", file, spec, is_found ? m->devices[index].spec : err.message);
    if (n_chips != 1 && is_found)
        fail_msg("%s: %s is %s, of %u chips", file, spec, m->devices[index].spec, n_chips);
}

static void test_shipped_configurations_find_their_gpus_on_each_machine(void **state)
{
    (void)state;
    char specs[SPECS_MAX][64];
    uint32_t n_specs = read_config_specs(specs), n_machines = 0, n_found = 0, last;
    assert_true(n_specs >= 3);
    DIR *folder = opendir(MACHINES);
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder));) {
        char path[512];
        td_err err = {0};
        if (!strstr(e->d_name, ".json"))
            continue;
        snprintf(path, sizeof path, MACHINES "%s", e->d_name);
        td_machine *m = td_machine_open(path, &err);
        if (!m)
            fail_msg("%s", err.message);
        for (uint32_t i = 0; i < n_specs; i++)
            expect_on_machine(e->d_name, m, specs[i]);
        n_found += count_chips(m, AMD_ID, &last) == 1;
        n_machines++;
        td_machine_close(&m);
    }
    closedir(folder);
    assert_true(n_machines >= 10 && n_found >= 6); /* the loop above had something to find */
}

static void test_a_described_chip_under_two_drivers_is_planned_once(void **state)
{
    (void)state;
    td_err err = {0};
    uint32_t order[TD_DEVICES_MAX];
    td_machine *m = td_machine_open(MACHINES "radv-amdvlk.json", &err);
    if (!m)
        fail_msg("%s", err.message);
    assert_int_equal(td_chips_default(m->devices, m->n_devices, order), 1);
    assert_non_null(strstr(m->devices[order[0]].driver, "radv"));
    td_machine_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_chip_under_two_drivers_is_used_once),
        cmocka_unit_test(test_drivers_are_preferred_in_this_order),
        cmocka_unit_test(test_what_cannot_be_used_is_not_preferred),
        cmocka_unit_test(test_three_drivers_of_one_chip_name_the_best),
        cmocka_unit_test(test_different_chips_stay_apart),
        cmocka_unit_test(test_software_drivers_are_no_chips),
        cmocka_unit_test(test_one_driver_listed_twice_is_one_device),
        cmocka_unit_test(test_a_vendor_is_told_by_its_number),
        cmocka_unit_test(test_a_part_of_the_name_still_finds_a_device),
        cmocka_unit_test(test_two_cards_of_a_vendor_are_named_in_the_error),
        cmocka_unit_test(test_addresses_and_uuids_find_a_device),
        cmocka_unit_test(test_ids_mean_the_same_device_in_another_order),
        cmocka_unit_test(test_hostile_specs_are_refused),
        cmocka_unit_test(test_specs_with_colons_take_layers),
        cmocka_unit_test(test_addresses_of_zeros_are_nobodys),
        cmocka_unit_test(test_a_draft_goes_to_a_chip_that_is_idle),
        cmocka_unit_test(test_drivers_of_one_chip_take_turns),
        cmocka_unit_test(test_shipped_configurations_find_their_gpus_on_each_machine),
        cmocka_unit_test(test_a_described_chip_under_two_drivers_is_planned_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
