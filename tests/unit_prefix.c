/* The folder of kept prompts: what is written is read again, and nothing else ever is; it stays
 * within its bound, whoever writes there. */
#include "base/crc32c.h"
#include "base/mem.h"
#include "model/prefix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define N_BYTES 100u
#define N_ROWS  4u
#define GB      1000000000ull

static char folder[64];
static int fd;

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/tandem-prefix-XXXXXX");
    return mkdtemp(folder) && (fd = open(folder, O_RDONLY | O_DIRECTORY)) >= 0 ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[96];
    close(fd);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static td_prefix_head head_of(uint32_t token)
{
    td_prefix_head h = {.n_bytes = N_BYTES,
                        .first = 2 * N_ROWS,
                        .n_tokens = N_ROWS,
                        .model = "m",
                        .what = "f16",
                        .tokens = {token, 2, 3, 4}};
    memset(h.before, 7, sizeof h.before);
    td_prefix_head_name(&h);
    return h;
}

static void fill(uint8_t *bytes, uint32_t token)
{
    for (uint32_t i = 0; i < N_BYTES; i++)
        bytes[i] = (uint8_t)(token * 31 + i);
}

static void path_of(const td_prefix_head *h, char path[160])
{
    char name[TD_PREFIX_NAME_BYTES];
    td_prefix_file_name(h->name, name);
    snprintf(path, 160, "%s/%s", folder, name);
}

/* Writes the file of a token, and gives its path. */
static void write_one(uint32_t token, char path[160])
{
    uint8_t bytes[N_BYTES];
    td_prefix_head h = head_of(token);
    td_err err = {0};
    fill(bytes, token);
    if (!td_prefix_file_write(fd, &h, bytes, &err))
        fail_msg("%s", err.message);
    path_of(&h, path);
}

static bool read_one(uint32_t token, bool *is_there, td_err *err)
{
    uint8_t bytes[N_BYTES], wanted[N_BYTES];
    td_prefix_head h = head_of(token), found;
    char name[TD_PREFIX_NAME_BYTES];
    td_prefix_file_name(h.name, name);
    bool is_ok = td_prefix_file_read(fd, name, &found, bytes, sizeof bytes, is_there, err);
    if (is_ok && *is_there) {
        fill(wanted, token);
        assert_memory_equal(bytes, wanted, N_BYTES);
        assert_memory_equal(found.tokens, h.tokens, sizeof h.tokens);
    }
    return is_ok;
}

static void expect_refused(uint32_t token, const char *word)
{
    bool is_there;
    td_err err = {0};
    assert_false(read_one(token, &is_there, &err));
    if (!strstr(err.message, word))
        fail_msg("\"%s\" is not in \"%s\"", word, err.message);
}

static size_t load(const char *path, uint8_t *bytes, size_t n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    n = fread(bytes, 1, n, f);
    fclose(f);
    return n;
}

static void save(const char *path, const uint8_t *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void test_a_file_is_read_as_it_was_written(void **state)
{
    (void)state;
    char path[160];
    struct stat st;
    bool is_there;
    td_err err = {0};
    assert_true(read_one(1, &is_there, &err));
    assert_false(is_there);
    write_one(1, path);
    assert_true(read_one(1, &is_there, &err) && is_there);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
}

static void test_damage_is_seen_wherever_it_is(void **state)
{
    (void)state;
    uint8_t bytes[TD_PREFIX_HEAD_BYTES + N_BYTES + 1];
    char path[160];
    bool is_there;
    write_one(1, path);
    size_t n = load(path, bytes, sizeof bytes);
    assert_int_equal(n, TD_PREFIX_HEAD_BYTES + N_BYTES);
    for (size_t i = 0; i < n; i += i < 140 || i > 2030 ? 1 : 37) {
        td_err err = {0};
        bytes[i] ^= (uint8_t)(1u << i % 8);
        save(path, bytes, n);
        assert_false(read_one(1, &is_there, &err));
        assert_int_equal(err.code, TD_E_DATA);
        bytes[i] ^= (uint8_t)(1u << i % 8);
    }
    static const size_t cuts[] = {0,
                                  1,
                                  100,
                                  TD_PREFIX_HEAD_BYTES - 1,
                                  TD_PREFIX_HEAD_BYTES,
                                  TD_PREFIX_HEAD_BYTES + N_BYTES - 1,
                                  TD_PREFIX_HEAD_BYTES + N_BYTES + 1};
    bytes[n] = 0;
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        save(path, bytes, cuts[i]);
        expect_refused(1, "bytes");
    }
    save(path, bytes, n);
    assert_true(read_one(1, &is_there, NULL));
}

/* What nobody damaged, but somebody made: the checksums are right. */
static void test_a_head_is_believed_nothing(void **state)
{
    (void)state;
    static const struct {
        uint32_t at, value;
        const char *word;
    } rows[] = {
        {0, 0x61616161, "no file"},  {8, 2, "version"},         {12, 64, "version"},
        {16, 1, "other tokens"},     {48, 1, "other tokens"},   {80, 0, "0 bytes"},
        {80, N_BYTES + 1, "behind"}, {84, 0xffff, "bytes"},     {88, 3, "position 3"},
        {92, 0, "behind the last"},  {92, 257, "257 pos"},      {104, 1, "allowed: 0"},
        {128, 7, "byte 7"},          {256, 0x41014141, "text"}, {512, 9, "other tokens"},
        {528, 9, "behind the last"}, {1536, 1, "allowed: 0"},
    };
    uint8_t bytes[TD_PREFIX_HEAD_BYTES + N_BYTES], changed[sizeof bytes];
    char path[160];
    write_one(1, path);
    load(path, bytes, sizeof bytes);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        memcpy(changed, bytes, sizeof bytes);
        memcpy(changed + rows[i].at, &rows[i].value, 4);
        uint32_t crc = td_crc32c(0, changed, TD_PREFIX_HEAD_BYTES - 4);
        memcpy(changed + TD_PREFIX_HEAD_BYTES - 4, &crc, 4);
        save(path, changed, sizeof changed);
        expect_refused(1, rows[i].word);
    }
}

static void test_only_our_own_regular_files_are_opened(void **state)
{
    (void)state;
    char path[160], other[160];
    write_one(1, path);
    assert_int_equal(chmod(path, 0622), 0);
    expect_refused(1, "others may write");
    assert_int_equal(chmod(path, 0600), 0);
    write_one(2, other);
    assert_int_equal(rename(path, other), 0); /* a whole file under another's name */
    expect_refused(2, "is called");
    assert_int_equal(symlink(other, path), 0);
    expect_refused(1, "link");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_refused(1, "no regular file");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    expect_refused(1, "no regular file");
}

static void test_a_room_too_small_is_not_overrun(void **state)
{
    (void)state;
    char path[160];
    uint8_t bytes[N_BYTES];
    td_prefix_head h;
    td_err err = {0};
    bool is_there;
    write_one(1, path);
    assert_false(
        td_prefix_file_read(fd, strrchr(path, '/') + 1, &h, bytes, N_BYTES - 1, &is_there, &err));
    assert_non_null(strstr(err.message, "allowed: 99"));
}

/* Through a store's thread. */
static void put(td_prefix_store *s, uint32_t token)
{
    uint8_t bytes[N_BYTES];
    td_queue home;
    td_queue_init(&home);
    td_prefix_blob b = {.home = &home, .head = head_of(token), .bytes = bytes, .capacity = N_BYTES};
    fill(bytes, token);
    td_prefix_store_write(s, &b);
    assert_ptr_equal(td_queue_pop(&home), &b.item);
    td_queue_destroy(&home);
}

static bool get(td_prefix_store *s, uint32_t token)
{
    uint8_t bytes[N_BYTES];
    td_prefix_blob b = {.head = head_of(token), .bytes = bytes, .capacity = N_BYTES};
    return td_prefix_store_read(s, &b);
}

static void age(uint32_t token, time_t seconds)
{
    char path[160];
    td_prefix_head h = head_of(token);
    path_of(&h, path);
    struct timespec used[2] = {{.tv_sec = seconds}, {.tv_sec = seconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, used, 0), 0);
}

static void test_what_was_not_used_for_longest_goes_first(void **state)
{
    (void)state;
    const uint64_t size = TD_PREFIX_HEAD_BYTES + N_BYTES;
    td_prefix_store *s = td_prefix_store_open(folder, 4 * size, NULL);
    for (uint32_t i = 0; i < 4; i++) {
        put(s, i);
        age(i, 1000 + i);
    }
    assert_true(get(s, 0)); /* used now */
    put(s, 4);
    assert_true(get(s, 0) && get(s, 4));
    assert_false(get(s, 1));
    td_prefix_entry *entries;
    uint32_t n;
    uint64_t n_bytes;
    assert_true(td_prefix_store_list(fd, &entries, &n, &n_bytes, NULL));
    assert_true(n_bytes <= 4 * size && n_bytes == n * size);
    td_free(entries);
    td_prefix_counts c = td_prefix_store_counts(s);
    assert_int_equal(c.n_written, 5);
    assert_int_equal(c.n_removed, 5 - n);
    td_prefix_store_close(&s);
    s = td_prefix_store_open(folder, size - 1, NULL); /* not even one */
    put(s, 9);
    assert_false(get(s, 9));
    assert_int_equal(td_prefix_store_counts(s).n_failed, 1);
    td_prefix_store_close(&s);
}

static void test_odd_names_are_nobodys(void **state)
{
    (void)state;
    char path[160], long_name[256];
    static const char *const names[] = {"README",   ".prefix",           "..prefix",
                                        "x.prefix", "\n\033[31m.prefix", ".writing-old"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        save(path, (const uint8_t *)"abc", 3);
    }
    struct timespec old[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    memset(long_name, 'a', sizeof long_name);
    long_name[255] = 0;
    assert_int_equal(mkdirat(fd, long_name, 0700), 0);
    td_prefix_store *s = td_prefix_store_open(folder, 2200, NULL);
    put(s, 1);
    put(s, 2);
    assert_true(get(s, 2));
    assert_false(get(s, 1));
    td_prefix_store_close(&s);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        assert_int_equal(faccessat(fd, names[i], F_OK, 0),
                         i + 1 < sizeof names / sizeof *names ? 0 : -1);
}

static void test_damage_is_replaced(void **state)
{
    (void)state;
    char path[160];
    write_one(1, path);
    save(path, (const uint8_t *)"abc", 3);
    td_prefix_store *s = td_prefix_store_open(folder, GB, NULL);
    uint8_t bytes[N_BYTES];
    td_queue home;
    td_queue_init(&home);
    td_prefix_blob b = {.home = &home, .head = head_of(1), .bytes = bytes, .capacity = N_BYTES};
    assert_false(td_prefix_store_read(s, &b));
    assert_true(b.is_replacing);
    fill(bytes, 1);
    td_prefix_store_write(s, &b);
    td_queue_pop(&home);
    td_queue_destroy(&home);
    assert_true(get(s, 1));
    assert_int_equal(td_prefix_store_counts(s).n_damaged, 1);
    td_prefix_store_close(&s);
}

static void test_writers_at_once_leave_whole_files(void **state)
{
    (void)state;
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i])
            continue;
        td_prefix_store *s =
            td_prefix_store_open(folder, 20 * (TD_PREFIX_HEAD_BYTES + N_BYTES), NULL);
        for (uint32_t k = 0; s && k < 100; k++) {
            put(s, k % 30);
            if (td_prefix_store_counts(s).n_damaged)
                _exit(1);
            get(s, k * 7 % 30);
        }
        td_prefix_store_close(&s);
        _exit(0);
    }
    for (int i = 0; i < 4; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_int_equal(status, 0);
    }
    /* Who writes in the same second counts for himself; the next to come counts all. */
    const uint32_t n_most = 20;
    td_prefix_store *next =
        td_prefix_store_open(folder, n_most * (TD_PREFIX_HEAD_BYTES + N_BYTES), NULL);
    put(next, 31);
    td_prefix_store_close(&next);
    td_prefix_entry *entries;
    uint32_t n;
    uint64_t n_bytes;
    assert_true(td_prefix_store_list(fd, &entries, &n, &n_bytes, NULL));
    assert_true(n > 0 && n <= n_most);
    for (uint32_t i = 0; i < n; i++) {
        td_prefix_head h;
        bool is_there;
        assert_true(td_prefix_file_read(fd, entries[i].name, &h, NULL, 0, &is_there, NULL));
    }
    td_free(entries);
}

static td_prefix *open_prefix(td_prefix_store *s, const char *identity)
{
    td_err err = {0};
    td_prefix *p = td_prefix_create(&(td_prefix_params){.store = s,
                                                        .identity = identity,
                                                        .model = "m\n",
                                                        .what = "f16",
                                                        .chunk_rows = N_ROWS,
                                                        .chunk_bytes = N_BYTES,
                                                        .n_slots = 2,
                                                        .n_ctx = 32,
                                                        .n_reading = 1},
                                    &err);
    if (!p)
        fail_msg("%s", err.message);
    return p;
}

/* Asks for chunks of `tokens` one after another; bits: those that were loaded. */
static uint32_t ask(td_prefix *p, uint32_t slot, uint32_t from, uint32_t length,
                    const uint32_t *tokens, uint32_t n)
{
    uint32_t loaded = 0;
    td_prefix_open(p, slot, from, length);
    for (uint32_t i = length / N_ROWS; i < n; i++) {
        td_prefix_blob *b = td_prefix_find(p, slot, i * N_ROWS, tokens + i * N_ROWS, N_BYTES, true);
        assert_non_null(b);
        loaded |= (uint32_t)b->is_loaded << i;
        memset(b->bytes, (int)i, b->is_loaded ? 0 : N_BYTES);
        td_prefix_done(p, &b, true);
        assert_null(b);
    }
    return loaded;
}

static void test_a_chunk_goes_by_all_tokens_before_it(void **state)
{
    (void)state;
    uint32_t a[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, b[12];
    td_prefix_store *s = td_prefix_store_open(folder, GB, NULL);
    td_prefix *p = open_prefix(s, "x");
    memcpy(b, a, sizeof a);
    b[5] = 99;
    assert_int_equal(ask(p, 0, 0, 0, a, 3), 0);
    td_prefix_store_flush(s);
    assert_int_equal(ask(p, 1, 1, 0, a, 3), 7);
    assert_int_equal(ask(p, 1, 1, 0, b, 3), 1);
    td_prefix_store_flush(s);
    assert_int_equal(ask(p, 1, 0, 4, b, 3), 6); /* begins with what slot 0 has */
    td_prefix_destroy(&p);
    p = open_prefix(s, "y"); /* all that decides the bits is in every name */
    assert_int_equal(ask(p, 0, 0, 0, a, 3), 0);
    td_prefix_destroy(&p);
    td_prefix_store_close(&s);
}

/* Chunks need not be asked for one by one; and others may name them by what is before. */
static void test_names_go_by_tokens_however_they_came(void **state)
{
    (void)state;
    uint32_t a[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    td_prefix_store *s = td_prefix_store_open(folder, GB, NULL);
    td_prefix *p = open_prefix(s, "x"), *q = open_prefix(s, "y");
    td_prefix_head one, two, first, other;
    assert_int_equal(ask(p, 0, 0, 0, a, 3), 0);
    td_prefix_store_flush(s);
    td_prefix_open(p, 1, 1, 0);
    assert_false(td_prefix_ask(p, 1, 8, a + 8, &one)); /* nothing before it has a name */
    td_prefix_name(p, 1, a, 8);
    assert_true(td_prefix_ask(p, 1, 8, a + 8, &one));
    td_prefix_blob *b = td_prefix_look(p, &one, N_BYTES, true);
    assert_true(b && b->is_loaded);
    td_prefix_done(p, &b, false);
    assert_true(td_prefix_ask(p, 0, 8, a + 8, &two));
    assert_memory_equal(one.name, two.name, sizeof one.name);
    td_prefix_behind(q, one.before, 8, a + 8, &first); /* of theirs and of its own identity */
    td_prefix_behind(p, one.before, 8, a + 8, &other);
    assert_memory_not_equal(first.name, one.name, sizeof one.name);
    assert_memory_not_equal(first.name, other.name, sizeof one.name);
    td_prefix_behind(q, two.before, 8, a + 8, &other);
    assert_memory_equal(first.name, other.name, sizeof one.name);
    td_prefix_behind(q, two.name, 8, a + 8, &other);
    assert_memory_not_equal(first.name, other.name, sizeof one.name);
    td_prefix_destroy(&p);
    td_prefix_destroy(&q);
    td_prefix_store_close(&s);
}

/* Room for one that is read and three that are written: what finds none is not kept. */
static void test_nobody_waits_for_a_slow_disk(void **state)
{
    (void)state;
    uint32_t tokens[] = {1, 2, 3, 4};
    td_prefix_store *s = td_prefix_store_open(folder, GB, NULL);
    td_prefix *p = open_prefix(s, "x");
    td_prefix_blob *blobs[TD_PREFIX_WRITING];
    for (uint32_t i = 0; i < TD_PREFIX_WRITING; i++) { /* on their way */
        tokens[0] = i;
        td_prefix_open(p, 0, 0, 0);
        assert_non_null(blobs[i] = td_prefix_find(p, 0, 0, tokens, N_BYTES, true));
    }
    tokens[0] = 9;
    td_prefix_open(p, 0, 0, 0);
    assert_null(td_prefix_find(p, 0, 0, tokens, N_BYTES, true));
    assert_int_equal(td_prefix_n_dropped(p), 1);
    td_prefix_done(p, &blobs[0], true);
    td_prefix_store_flush(s);
    tokens[0] = 0; /* what is there is read all the same */
    td_prefix_open(p, 0, 0, 0);
    assert_non_null(blobs[0] = td_prefix_find(p, 0, 0, tokens, N_BYTES, true));
    assert_true(blobs[0]->is_loaded);
    for (uint32_t i = 0; i < TD_PREFIX_WRITING; i++)
        td_prefix_done(p, &blobs[i], false);
    td_prefix_destroy(&p);
    assert_int_equal(td_prefix_store_counts(s).n_written, 1);
    td_prefix_store_close(&s);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_a_file_is_read_as_it_was_written),
        IN_FOLDER(test_damage_is_seen_wherever_it_is),
        IN_FOLDER(test_a_head_is_believed_nothing),
        IN_FOLDER(test_only_our_own_regular_files_are_opened),
        IN_FOLDER(test_a_room_too_small_is_not_overrun),
        IN_FOLDER(test_what_was_not_used_for_longest_goes_first),
        IN_FOLDER(test_odd_names_are_nobodys),
        IN_FOLDER(test_damage_is_replaced),
        IN_FOLDER(test_writers_at_once_leave_whole_files),
        IN_FOLDER(test_a_chunk_goes_by_all_tokens_before_it),
        IN_FOLDER(test_names_go_by_tokens_however_they_came),
        IN_FOLDER(test_nobody_waits_for_a_slow_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
