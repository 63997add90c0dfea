/* The file of compiled pipelines: written, read again, and passed over, never an error, when it is
 * torn, foreign, unsafe or cannot be written. What a driver keeps in it is the driver's business;
 * that the file was taken is what is looked at. */
#include "base/check.h"
#include "base/log.h"
#include "kernels/ops.h"
#include "kernels/vulkan/probe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/tandem-cache-XXXXXX";
static char file[4096];
static int log_fd;

/* Opens the device, runs a program with a right answer, closes it. */
static bool open_and_run(char *path)
{
    td_err err = {0};
    td_device *dev = td_device_create("vulkan:0", &err);
    if (!dev)
        fail_msg("%s", err.message);
    td_tensor *x = td_tensor_create(
        dev, &(td_tensor_params){"x", TD_ELEM_F32, TD_ROWS_BATCH, 1, 4, true}, &err);
    td_program *p = td_program_begin(dev, &(td_program_params){"p", TD_MODE_VERIFY, 1, 0}, &err);
    assert_true(x && p);
    td_op_add(p, td_all(x), td_all(x), td_all(x));
    bool was_read;
    snprintf(path, sizeof file, "%s", td_vulkan_cache_path(dev, &was_read));
    if (!td_program_end(p, &err))
        fail_msg("%s", err.message);
    float *values = td_tensor_data(x);
    for (int i = 0; i < 4; i++)
        values[i] = (float)i;
    if (!td_program_run(p, 1, 0, &err))
        fail_msg("%s", err.message);
    for (int i = 0; i < 4; i++)
        assert_true(values[i] == (float)(2 * i));
    td_program_destroy(&p);
    td_tensor_destroy(&x);
    td_device_destroy(&dev);
    return was_read;
}

static size_t log_bytes(void)
{
    struct stat s;
    assert_int_equal(fstat(log_fd, &s), 0);
    return (size_t)s.st_size;
}

/* A run that passes the file over: with a line in the log, and it leaves a good file or none. */
static void expect_passed_over(const char *what)
{
    char path[sizeof file];
    size_t before = log_bytes();
    if (open_and_run(path))
        fail_msg("%s: the file was taken", what);
    if (log_bytes() == before)
        fail_msg("%s: nothing in the log", what);
}

static char *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *bytes = malloc(1 << 20);
    *n = fread(bytes, 1, 1 << 20, f);
    fclose(f);
    return bytes;
}

static void spill(const char *path, const void *bytes, size_t n)
{
    unlink(path);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
    chmod(path, 0600);
}

static void test_file_is_written_and_read(void **state)
{
    (void)state;
    char path[sizeof file];
    struct stat s;
    assert_false(open_and_run(file));
    assert_int_equal(strncmp(file, folder, strlen(folder)), 0);
    assert_int_equal(stat(file, &s), 0);
    assert_int_equal(s.st_mode & 022, 0);
    size_t before = log_bytes();
    assert_true(open_and_run(path));
    assert_string_equal(path, file);
    assert_int_equal(log_bytes(), before);
}

static void test_torn_and_foreign_files_are_passed_over(void **state)
{
    (void)state;
    char path[sizeof file], what[64];
    size_t n;
    char *good = slurp(file, &n), *bad = malloc(n + 1);
    for (size_t cut = 0; cut < n; cut += cut < 80 ? 7 : 13) {
        spill(file, good, cut);
        snprintf(what, sizeof what, "cut to %zu bytes", cut);
        expect_passed_over(what);
        assert_true(open_and_run(path)); /* a good one took its place */
    }
    for (size_t at = 0; at < n; at += at < 96 ? 5 : n / 8 + 1) {
        memcpy(bad, good, n);
        bad[at] ^= 0x10;
        spill(file, bad, n);
        snprintf(what, sizeof what, "byte %zu changed", at);
        expect_passed_over(what);
    }
    memcpy(bad, good, n);
    bad[n] = 0;
    spill(file, bad, n + 1);
    expect_passed_over("one byte too long");
    free(good);
    free(bad);
}

static void test_unsafe_files_are_passed_over(void **state)
{
    (void)state;
    size_t n;
    char other[sizeof file + 8];
    assert_true(open_and_run(other));
    char *good = slurp(file, &n);
    chmod(file, 0666);
    expect_passed_over("others may write it");
    unlink(file);
    assert_int_equal(mkfifo(file, 0600), 0);
    expect_passed_over("a pipe"); /* and does not wait for its other end */
    unlink(file);
    snprintf(other, sizeof other, "%s.other", file);
    spill(other, good, n);
    assert_int_equal(symlink(other, file), 0);
    expect_passed_over("a link");
    unlink(file);
    unlink(other);
    assert_int_equal(mkdir(file, 0700), 0);
    expect_passed_over("a folder");
    rmdir(file);
    free(good);
}

static void test_folder_that_cannot_be_is_no_error(void **state)
{
    (void)state;
    char path[sizeof file], blocked[sizeof file + 16];
    assert_false(open_and_run(path));
    snprintf(blocked, sizeof blocked, "%s/below", file); /* a file is in its place */
    setenv("TANDEM_CACHE_DIR", blocked, 1);
    expect_passed_over("no folder");
    setenv("TANDEM_CACHE_DIR", "", 1);
    size_t before = log_bytes();
    assert_false(open_and_run(path));
    assert_string_equal(path, "");
    assert_int_equal(log_bytes(), before);
    setenv("TANDEM_CACHE_DIR", folder, 1);
}

static void test_default_folder(void **state)
{
    (void)state;
    if (getenv("TD_VK_VALIDATION")) /* the layers keep files of their own there */
        skip();
    char path[sizeof file], want[sizeof file];
    unsetenv("TANDEM_CACHE_DIR");
    char *home = strdup(getenv("HOME") ? getenv("HOME") : "");
    setenv("HOME", folder, 1);
    unsetenv("XDG_CACHE_HOME");
    open_and_run(path);
    snprintf(want, sizeof want, "%s/.cache/tandem/pipelines-", folder);
    assert_int_equal(strncmp(path, want, strlen(want)), 0);
    assert_int_equal(unlink(path), 0);
    setenv("XDG_CACHE_HOME", "relative", 1); /* to be ignored, says its specification */
    open_and_run(path);
    assert_int_equal(strncmp(path, want, strlen(want)), 0);
    assert_int_equal(unlink(path), 0);
    snprintf(want, sizeof want, "%s/x", folder);
    setenv("XDG_CACHE_HOME", want, 1);
    open_and_run(path);
    strcat(want, "/tandem/pipelines-");
    assert_int_equal(strncmp(path, want, strlen(want)), 0);
    assert_int_equal(unlink(path), 0);
    const char *left[] = {"x/tandem", "x", ".cache/tandem", ".cache"};
    for (size_t i = 0; i < TD_COUNT(left); i++) {
        snprintf(want, sizeof want, "%s/%s", folder, left[i]);
        assert_int_equal(rmdir(want), 0);
    }
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", home, 1);
    setenv("TANDEM_CACHE_DIR", folder, 1);
    free(home);
}

static int tear_down(void **state)
{
    (void)state;
    unlink(file);
    return rmdir(folder); /* no temporary files are left */
}

int main(void)
{
    td_device_info infos[2];
    if (td_device_list(infos, 2) < 2 || !infos[1].is_usable) {
        fprintf(stderr, "skipped: no usable Vulkan device of index 0\n");
        return 77;
    }
    log_fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (log_fd < 0 || !mkdtemp(folder))
        return 1;
    td_log_set_output(log_fd, false);
    setenv("MESA_SHADER_CACHE_DISABLE", "true", 1); /* it would use our folders too */
    setenv("TANDEM_CACHE_DIR", folder, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file_is_written_and_read),
        cmocka_unit_test(test_torn_and_foreign_files_are_passed_over),
        cmocka_unit_test(test_unsafe_files_are_passed_over),
        cmocka_unit_test(test_folder_that_cannot_be_is_no_error),
        cmocka_unit_test(test_default_folder),
    };
    return cmocka_run_group_tests(tests, NULL, tear_down);
}
