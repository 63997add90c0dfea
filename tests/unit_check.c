/* The cases of `tandem check`: every kind of op has some, each that is needed by another comes
 * before it, and the scalar device agrees with itself in all of them. Verdicts: kept, asked for,
 * overridden by a whole check, no matter of threads. Clocks from a sysfs of our own making. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/check.h"
#include "base/rng.h"
#include "check/cases.h"
#include "check/report_bytes.h"
#include "check/trial.h"
#include "check/verdict.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void test_every_kind_of_op_has_a_case(void **state)
{
    (void)state;
    const char *gap = td_cases_find_gap();
    if (gap)
        fail_msg("%s has no case in check/cases.c", gap);
}

typedef struct {
    char ops[1024];
    td_device *scalar;
    uint32_t n;
} seen;

static bool visit(const td_case *c, void *user)
{
    seen *s = user;
    td_trial trial;
    if (c->needs && !strstr(s->ops, c->needs))
        fail_msg("%s %s needs %s, of which there is no case before", c->op, c->shape, c->needs);
    size_t n = strlen(s->ops);
    if (!strstr(s->ops, c->op))
        snprintf(s->ops + n, sizeof s->ops - n, " %s", c->op);
    td_trial_run(s->scalar, s->scalar, c, 2, &trial);
    if (!trial.is_ok)
        fail_msg("%s %s: %s", c->op, c->shape, trial.reason);
    assert_true(trial.worst == 0);
    s->n++;
    return true;
}

static void test_the_scalar_device_agrees_with_itself(void **state)
{
    (void)state;
    td_err err = {0};
    seen s = {.scalar = td_device_create("scalar", &err)};
    assert_non_null(s.scalar);
    td_cases_visit(true, visit, &s);
    assert_true(s.n > 100);
    td_device_destroy(&s.scalar);
}

static void test_verdicts_are_kept_until_the_device_passes(void **state)
{
    (void)state;
    char folder[] = "/tmp/unit_check_XXXXXX";
    td_err err = {0};
    assert_non_null(mkdtemp(folder));
    setenv("TANDEM_CACHE_DIR", folder, 1);
    static td_check_report report;
    assert_true(td_device_find("host:1", &report.info, &err));
    assert_true(td_verdict_ask(&report.info, &err));
    report.ops[report.n_ops++] =
        (td_check_item){.name = "rope", .state = TD_CHECK_FAILED, .reason = "row 3: a \"bit\""};
    td_verdict_keep(&report, false);
    assert_false(td_verdict_ask(&report.info, &err));
    assert_int_equal(err.code, TD_E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "rope: row 3: a \"bit\""));
    assert_non_null(strstr(err.message, "--trust"));
    td_err_clear(&err);
    assert_false(td_verdict_ask_spec("host:2@0-3", &err)); /* threads and layers do not matter */
    td_err_clear(&err);
    assert_true(td_verdict_ask_spec("box/host", &err)); /* not here */
    td_device_info newer = report.info;
    snprintf(newer.driver, sizeof newer.driver, "another");
    assert_true(td_verdict_ask(&newer, &err));
    report.ops[0].state = TD_CHECK_PASSED;
    td_verdict_keep(&report, false); /* only some of it passed */
    assert_false(td_verdict_ask(&report.info, NULL));
    td_verdict_keep(&report, true);
    assert_true(td_verdict_ask(&report.info, &err));
    unsetenv("TANDEM_CACHE_DIR");
    assert_int_equal(rmdir(folder), 0);
}

/* As a worker sends it: what comes out is what went in; bytes that are cut or changed are refused,
 * or give a report that is within its limits. */
static void test_a_report_goes_from_machine_to_machine(void **state)
{
    (void)state;
    static uint8_t bytes[65000], again[65000];
    static td_check_report report, got;
    td_err err = {0};
    size_t n, n_again;
    assert_true(td_device_find("host:1", &report.info, &err));
    snprintf(report.info.name, sizeof report.info.name, "Caf\xc3\xa9 \n");
    report.is_small = report.has_speeds = true;
    report.n_ops = TD_CHECK_OPS_MAX;
    report.n_parts = TD_CHECK_PARTS_MAX;
    for (uint32_t i = 0; i < TD_CHECK_OPS_MAX + TD_CHECK_PARTS_MAX; i++) {
        td_check_item *item =
            i < TD_CHECK_OPS_MAX ? &report.ops[i] : &report.parts[i - TD_CHECK_OPS_MAX];
        *item = (td_check_item){.name = "an op",
                                .state = TD_CHECK_FAILED,
                                .n_cases = i,
                                .worst = 0.5,
                                .seconds = 1e300};
        memset(item->reason, 'r', sizeof item->reason - 1);
    }
    report.speeds.products[0].type = "Q4_K";
    report.speeds.products[1].type = "Q8_0";
    report.speeds.products[1].ms[6] = 3.25;
    snprintf(report.clocks.hint, sizeof report.clocks.hint, "a hint");
    assert_true(td_check_encode(&report, bytes, sizeof bytes, &n, &err)); /* the largest there is */
    assert_true(td_check_decode(bytes, n, &got, &err));
    assert_true(td_check_encode(&got, again, sizeof again, &n_again, &err));
    assert_int_equal(n, n_again);
    assert_memory_equal(bytes, again, n);
    assert_string_equal(got.info.name, "Caf?? ?");
    assert_string_equal(got.clocks.hint, "a hint");
    assert_string_equal(got.speeds.products[0].type, "Q4_K");
    assert_true(got.speeds.products[1].ms[6] == 3.25);
    assert_int_equal(got.ops[7].n_cases, 7);
    assert_false(td_check_encode(&report, again, n - 1, &n_again, NULL));
    for (size_t k = 0; k < n; k += 1 + k / 50)
        assert_false(td_check_decode(bytes, k, &got, NULL));
    memcpy(again, bytes, n);
    assert_false(td_check_decode(again, n + 1, &got, NULL));
    uint32_t n_taken = 0;
    for (uint32_t i = 0; i < 4000; i++) {
        size_t at = i < 2000 ? i % n : td_noise_bits(1, i, 0) % n;
        uint8_t was = again[at];
        again[at] = (uint8_t)td_noise_bits(1, i, 1);
        memset(&got, 0xff, sizeof got);
        bool is_taken = td_check_decode(again, n, &got, NULL);
        n_taken += is_taken;
        if (is_taken) {
            assert_true(got.n_ops <= TD_CHECK_OPS_MAX && got.n_parts <= TD_CHECK_PARTS_MAX);
            assert_true(strlen(got.ops[0].reason) < sizeof got.ops[0].reason);
            assert_true(strlen(got.info.driver) < sizeof got.info.driver);
        }
        again[at] = was;
    }
    assert_in_range(n_taken, 100, 3900); /* both happen */
    double us = 0;
    assert_false(td_check_decode_hop(bytes, 7, &us, NULL));
    const double nan_bits = NAN;
    assert_false(td_check_decode_hop(&nan_bits, sizeof nan_bits, &us, NULL));
}

static void write_file(const char *root, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_a_verdict_that_cannot_be_read_is_none(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        "{",
                                        "[]",
                                        "{\"key\": \"x\"}",
                                        "{\"key\": \"x\", \"failed\": \"\", \"reason\": 3}",
                                        "{\"key\": \"x\", \"failed\": \"a\", \"reason\": \"b\"}"};
    char folder[] = "/tmp/unit_check_XXXXXX", command[128], path[512] = "";
    td_err err = {0};
    assert_non_null(mkdtemp(folder));
    setenv("TANDEM_CACHE_DIR", folder, 1);
    static td_check_report report;
    report = (td_check_report){.n_ops = 1};
    assert_true(td_device_find("host:1", &report.info, &err));
    report.ops[0] = (td_check_item){.name = "add", .state = TD_CHECK_FAILED, .reason = "r"};
    td_verdict_keep(&report, false);
    assert_false(td_verdict_ask(&report.info, NULL));
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e; e = readdir(d))
        if (e->d_name[0] != '.')
            snprintf(path, sizeof path, "%.100s", e->d_name);
    closedir(d);
    for (size_t i = 0; i < TD_COUNT(texts); i++) {
        write_file(folder, path, texts[i]);
        assert_true(td_verdict_ask(&report.info, &err));
    }
    td_verdict_keep(&report, false); /* and is written anew */
    assert_false(td_verdict_ask(&report.info, NULL));
    unsetenv("TANDEM_CACHE_DIR");
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
}

static void test_clocks_are_read_and_slow_settings_named(void **state)
{
    (void)state;
    char root[] = "/tmp/unit_check_XXXXXX", command[128];
    td_clocks c;
    const td_device_info host = {.kind = TD_DEVICE_HOST};
    const td_device_info card = {.kind = TD_DEVICE_DISCRETE, .pci = "0000:03:00.0"};
    assert_non_null(mkdtemp(root));
    setenv("TD_SYSFS", root, 1);
    td_clocks_read(&card, &c);
    assert_string_equal(c.level, "");
    assert_string_equal(c.hint, "");
#define CARD(name) "bus/pci/devices/0000:03:00.0/" name
    write_file(root, CARD("power_dpm_force_performance_level"), "low\n");
    write_file(root, CARD("pp_dpm_sclk"), "0: 500Mhz *\n1: 1800Mhz \n2: 2900Mhz \n");
    write_file(root, CARD("pp_dpm_mclk"), "0: 96Mhz\n1: 1249Mhz *\n");
    write_file(root, CARD("current_link_speed"), "8.0 GT/s PCIe\n");
    write_file(root, CARD("current_link_width"), "4\n");
    write_file(root, CARD("max_link_speed"), "16.0 GT/s PCIe\n");
    write_file(root, CARD("max_link_width"), "16\n");
    write_file(root, "devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n");
    td_clocks_read(&card, &c);
    assert_string_equal(c.level, "low");
    assert_string_equal(c.core, "500Mhz");
    assert_string_equal(c.core_max, "2900Mhz");
    assert_string_equal(c.memory, "1249Mhz");
    assert_string_equal(c.link, "8.0 GT/s PCIe x4");
    assert_string_equal(c.link_max, "16.0 GT/s PCIe x16");
    assert_non_null(strstr(c.hint, "is low, which costs speed"));
    td_clocks_read(&host, &c);
    assert_string_equal(c.governor, "powersave");
    assert_non_null(strstr(c.hint, "powersave"));
    write_file(root, CARD("power_dpm_force_performance_level"), "high\n");
    write_file(root, CARD("pp_dpm_sclk"), ":\n* \n\n: *\n");
    td_clocks_read(&card, &c);
    assert_string_equal(c.hint, "");
    unsetenv("TD_SYSFS");
    snprintf(command, sizeof command, "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_kind_of_op_has_a_case),
        cmocka_unit_test(test_the_scalar_device_agrees_with_itself),
        cmocka_unit_test(test_verdicts_are_kept_until_the_device_passes),
        cmocka_unit_test(test_a_report_goes_from_machine_to_machine),
        cmocka_unit_test(test_a_verdict_that_cannot_be_read_is_none),
        cmocka_unit_test(test_clocks_are_read_and_slow_settings_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
