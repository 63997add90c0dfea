/* A fuzz harness without a fuzzer: runs it over files, and over cuts and flipped bytes of each, so
 * that every compiler and sanitizer of the tests sees what the corpus reaches.
 *
 *   test_fuzz_NAME FILE-OR-FOLDER...     run
 *   test_fuzz_NAME --seeds FOLDER        write the seeds */
#include "base/check.h"
#include "base/rng.h"
#include "tests/fuzz/fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define FILE_BYTES_MAX (1u << 17)
#define N_CHANGED      64u /* runs of a file with a byte changed or its end cut off */

static uint64_t n_runs;

/* A block of exactly that size, so that a sanitizer sees a read past it. */
static void run(const uint8_t *bytes, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    TD_ASSERT(copy);
    memcpy(copy, bytes, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
    n_runs++;
}

static void run_file(const char *path)
{
    static uint8_t bytes[FILE_BYTES_MAX];
    FILE *f = fopen(path, "rb");
    TD_ASSERT(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    run(bytes, n);
    for (uint32_t i = 0; i < N_CHANGED && n; i++) {
        size_t at = td_noise_bits(1, i, 0) % n;
        uint8_t was = bytes[at];
        bytes[at] = (uint8_t)td_noise_bits(1, i, 1);
        run(bytes, i % 4 ? n : at);
        bytes[at] = was;
    }
}

static void run_path(const char *path)
{
    DIR *d = opendir(path);
    if (!d) {
        run_file(path);
        return;
    }
    for (struct dirent *e; (e = readdir(d));) {
        char file[1024];
        if (e->d_name[0] == '.')
            continue;
        snprintf(file, sizeof file, "%s/%s", path, e->d_name);
        run_file(file);
    }
    closedir(d);
}

static void write_seeds(const char *folder)
{
    uint8_t bytes[TD_FUZZ_SEED_MAX];
    size_t n;
    for (uint32_t i = 0; (n = td_fuzz_seed(i, bytes)) > 0; i++) {
        char file[1024];
        snprintf(file, sizeof file, "%s/seed-%02u", folder, i);
        FILE *f = fopen(file, "wb");
        TD_ASSERT(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--seeds")) {
        write_seeds(argv[2]);
        return 0;
    }
    uint8_t seed[TD_FUZZ_SEED_MAX];
    size_t n;
    for (uint32_t i = 0; (n = td_fuzz_seed(i, seed)) > 0; i++)
        run(seed, n);
    for (int i = 1; i < argc; i++)
        run_path(argv[i]);
    printf("%llu runs\n", (unsigned long long)n_runs);
    return n_runs == 0;
}
