/* Energy from a sysfs of our own making: which files count, counters that begin again, power over
 * time, and files that are strange, closed or gone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/energy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char root[] = "/tmp/unit_energy_XXXXXX";

/* Whole at once: the sampling thread may look at any moment. */
static void put(const char *path, const char *text)
{
    char command[512], file[256], part[300];
    snprintf(file, sizeof file, "%s/%s", root, path);
    snprintf(part, sizeof part, "%s.part", file);
    snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s')\"", file);
    assert_int_equal(system(command), 0);
    FILE *f = fopen(part, "we");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(rename(part, file), 0);
}

static int clear(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", root, root);
    return system(command);
}

static td_energy *open_here(uint32_t n_wanted)
{
    td_err err = {0};
    td_energy *e = td_energy_open(root, &err);
    assert_non_null(e);
    assert_int_equal(err.code, TD_OK);
    assert_int_equal(td_energy_count(e), n_wanted);
    return e;
}

static void put_package(const char *uj)
{
    put("class/powercap/intel-rapl:0/name", "package-0\n");
    put("class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n");
    put("class/powercap/intel-rapl:0/energy_uj", uj);
}

static void test_nothing_there_is_no_error(void **state)
{
    (void)state;
    td_energy *e = open_here(0);
    double joules[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, joules);
    td_energy_close(&e);
    assert_null(e);
}

static void test_counters_are_read_by_name(void **state)
{
    (void)state;
    put_package("1000000\n");
    put("class/powercap/intel-rapl:0:0/name", "core\n"); /* a part of the package */
    put("class/powercap/intel-rapl:0:0/energy_uj", "7\n");
    put("class/powercap/intel-rapl:0:1/name", "dram\n");
    put("class/powercap/intel-rapl:0:1/energy_uj", "500000\n");
    put("class/powercap/intel-rapl:1/name", "psys\n"); /* all of the machine: counted twice */
    put("class/powercap/intel-rapl:1/energy_uj", "7\n");
    td_energy *e = open_here(2);
    assert_string_equal(td_energy_source_at(e, 0)->name, "package-0");
    assert_string_equal(td_energy_source_at(e, 1)->name, "dram-0");
    assert_false(td_energy_source_at(e, 0)->is_gpu);
    double joules[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, joules);
    assert_true(joules[0] == 0 && joules[1] == 0);
    put("class/powercap/intel-rapl:0/energy_uj", "3500000\n");
    put("class/powercap/intel-rapl:0:1/energy_uj", "750000\n");
    td_energy_read(e, joules);
    assert_true(fabs(joules[0] - 2.5) < 1e-9 && fabs(joules[1] - 0.25) < 1e-9);
    td_energy_close(&e);
}

static void test_a_counter_begins_again(void **state)
{
    (void)state;
    put_package("262143000000\n");
    td_energy *e = open_here(1);
    put_package("1000000\n");
    double joules[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, joules);
    assert_true(fabs(joules[0] - 1.32885) < 1e-9);
    td_energy_close(&e);
}

static void test_a_gpus_counter_wins_over_its_power(void **state)
{
    (void)state;
    put("devices/pci0000:00/0000:03:00.0/class", "0x030000\n");
    put("class/hwmon/hwmon2/name", "xe\n");
    char link[512];
    snprintf(link, sizeof link,
             "ln -s %s/devices/pci0000:00/0000:03:00.0 %s/class/hwmon/hwmon2/device", root, root);
    assert_int_equal(system(link), 0);
    put("class/hwmon/hwmon2/energy1_input", "10\n");
    put("class/hwmon/hwmon2/power1_average", "10\n");
    put("class/hwmon/hwmon3/name", "nvme\n"); /* no display controller */
    put("class/hwmon/hwmon3/device/class", "0x010802\n");
    put("class/hwmon/hwmon3/energy1_input", "10\n");
    td_energy *e = open_here(1);
    assert_string_equal(td_energy_source_at(e, 0)->name, "xe 0000:03:00.0");
    assert_true(td_energy_source_at(e, 0)->is_gpu);
    put("class/hwmon/hwmon2/energy1_input", "2000010\n");
    double joules[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, joules);
    assert_true(fabs(joules[0] - 2) < 1e-9);
    td_energy_close(&e);
}

static void test_power_is_summed_over_time(void **state)
{
    (void)state;
    put("class/hwmon/hwmon0/name", "amdgpu\n");
    put("class/hwmon/hwmon0/device/class", "0x038000\n");
    put("class/hwmon/hwmon0/power1_average", "1000000000000000\n"); /* 1e9 W: any time shows */
    td_energy *e = open_here(1);
    double a[TD_ENERGY_SOURCES_MAX], b[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, a);
    usleep(2000);
    td_energy_read(e, b);
    assert_true(a[0] >= 0 && b[0] - a[0] >= 1e9 * 0.002);
    td_energy_close(&e);
}

static void test_strange_files_are_passed_over(void **state)
{
    (void)state;
    static const char *const texts[] = {"",      "\n",
                                        "-1\n",  "nan\n",
                                        "1e9\n", "99999999999999999999\n",
                                        "1 2\n", "12345678901234567890123456789012345678\n"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put_package(texts[i]);
        td_energy *e = open_here(0);
        td_energy_close(&e);
    }
    td_err err = {0};
    char deep[600];
    memset(deep, 'x', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    td_energy *e = td_energy_open(deep, &err);
    assert_int_equal(td_energy_count(e), 0);
    td_energy_close(&e);
}

static void test_a_source_that_goes_away_is_not_a_number(void **state)
{
    (void)state;
    put_package("5\n");
    td_energy *e = open_here(1);
    clear(NULL);
    double joules[TD_ENERGY_SOURCES_MAX];
    td_energy_read(e, joules);
    assert_true(isnan(joules[0]));
    put_package("6\n");
    td_energy_read(e, joules);
    assert_true(isnan(joules[0])); /* what was missed is not known */
    td_energy_close(&e);
}

static int make_root(void **state)
{
    (void)state;
    return !mkdtemp(root);
}

static int remove_root(void **state) { return clear(state) || rmdir(root); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_nothing_there_is_no_error, clear),
        cmocka_unit_test_setup(test_counters_are_read_by_name, clear),
        cmocka_unit_test_setup(test_a_counter_begins_again, clear),
        cmocka_unit_test_setup(test_a_gpus_counter_wins_over_its_power, clear),
        cmocka_unit_test_setup(test_power_is_summed_over_time, clear),
        cmocka_unit_test_setup(test_strange_files_are_passed_over, clear),
        cmocka_unit_test_setup(test_a_source_that_goes_away_is_not_a_number, clear),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
