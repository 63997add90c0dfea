/* Loading holds no more than the packed weights and a bounded rest: source pages are read in small
 * pieces and dropped. The most that was resident is the kernel's own figure, VmHWM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/model.h"

#include "toy_model.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REST_BYTES (64ull << 20)

/* A line of /proc/self/status, in bytes. */
static uint64_t read_status(const char *key)
{
    char line[256];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key)))
            assert_int_equal(sscanf(line + strlen(key), ": %llu kB", &kb), 1);
    fclose(f);
    assert_true(kb > 0);
    return kb << 10;
}

/* VmHWM begins anew. */
static bool reset_peak(void)
{
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    bool is_ok = fd >= 0 && write(fd, "5", 1) == 1;
    if (fd >= 0)
        close(fd);
    return is_ok;
}

static void check_device(const td_model *m, const char *spec)
{
    td_err err = {0};
    td_device *dev = td_device_create(spec, &err);
    if (!dev) {
        print_message("skipped: %s: %s\n", spec, err.message);
        return;
    }
    assert_true(reset_peak());
    uint64_t before = read_status("VmRSS"), used, budget;
    td_weights *w = td_weights_load(
        &(td_weights_params){.model = m, .dev = dev, .last = td_model_hparams(m)->n_layer - 1},
        &err);
    if (!w)
        fail_msg("%s", err.message);
    uint64_t peak = read_status("VmHWM");
    td_device_memory(dev, &used, &budget);
    assert_true(used > 128ull << 20);
    if (peak > before + used + REST_BYTES)
        fail_msg("%s: %llu bytes were resident, of which %llu before and %llu of weights; allowed "
                 "beside them: %llu",
                 spec, (unsigned long long)peak, (unsigned long long)before,
                 (unsigned long long)used, REST_BYTES);
    td_weights_destroy(&w);
    td_device_destroy(&dev);
}

static void test_loading_keeps_to_the_packed_weights(void **state)
{
    (void)state;
    char path[] = "/tmp/unit_load_memory_XXXXXX";
    toy t = toy_begin("llama", (toy_shape){1024, 16, 4, 64, 5, 8192, 64, false, false});
    for (uint32_t i = 0; i < t.n_tensors; i++)
        if (t.tensors[i].n_dims == 2)
            t.tensors[i].type = TD_TYPE_Q8_0;
    toy_save(&t, path);
    td_err err = {0};
    td_model *m = td_model_open(path, &err);
    if (!m)
        fail_msg("%s", err.message);
    static td_device_info infos[TD_DEVICES_MAX];
    uint32_t n = td_device_list(infos, TD_DEVICES_MAX);
    check_device(m, "host:2");
    for (uint32_t i = 0; i < n; i++)
        if (infos[i].kind != TD_DEVICE_HOST && infos[i].is_usable)
            check_device(m, infos[i].spec);
    td_model_close(&m);
    unlink(path);
}

int main(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    printf("skipped: a sanitizer keeps memory of its own\n");
    return 77;
#endif
    if (!reset_peak()) {
        printf("skipped: /proc/self/clear_refs cannot be written here\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loading_keeps_to_the_packed_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
