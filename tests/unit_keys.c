/* The folder of keys: what is made, what is refused, and that nothing secret is open or shown. */
#include "transport/keys.h"

#include "base/check.h"
#include "tests/auth_common.h"

static void test_a_pair_is_made_once_and_stays_secret(void **state)
{
    (void)state;
    key_ring r;
    struct stat st;
    td_err err = {0};
    td_key_pair pair;
    char path[160], key[TD_KEY_TEXT], derived[TD_KEY_TEXT];
    key_ring_make(&r);
    assert_int_equal(stat(r.dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    key_path(&r, "worker.key", path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_true(td_keys_read_own("worker", &pair, &err));
    assert_string_equal(pair.public_key, r.worker);
    assert_int_equal(zmq_curve_public(derived, pair.secret), 0);
    assert_string_equal(derived, r.worker);
    assert_false(td_keys_new("worker", key, &err));
    assert_int_equal(err.code, TD_E_USAGE);
    assert_null(strstr(err.message, pair.secret));
    td_key_pair again;
    assert_true(td_keys_read_own("worker", &again, NULL));
    assert_memory_equal(&pair, &again, sizeof pair);
    td_err_clear(&err);
    assert_false(td_keys_new("client", key, &err)); /* let in under that name */
    key_ring_remove(&r);
}

static void test_names_and_keys_are_checked(void **state)
{
    (void)state;
    static const char *const names[] = {"",
                                        ".",
                                        "..",
                                        "../x",
                                        "a/b",
                                        "-x",
                                        ".key",
                                        "a b",
                                        "a\nb",
                                        "\xc3\xa4",
                                        "a;b",
                                        "0123456789012345678901234567890123456789012345678901234567"
                                        "890123456"};
    static const char *const keys[] = {
        "",
        "abc",
        "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID", /* zmq_curve(7), all four */
        "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
        "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs",
        "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6",
        "0000000000000000000000000000000000000000",
        "########################################", /* beyond 32 bits */
        "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{h'D",
        "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{h\xc3\xa4",
        "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hIDx",
    };
    key_ring r;
    char key[TD_KEY_TEXT], name[TD_KEY_NAME_MAX + 1];
    key_ring_make(&r);
    for (size_t i = 0; i < TD_COUNT(names); i++) {
        td_err err = {0};
        td_key_pair pair;
        assert_false(td_keys_new(names[i], key, &err));
        assert_int_equal(err.code, TD_E_USAGE);
        assert_false(td_keys_allow(names[i], r.stranger, NULL));
        assert_false(td_keys_read_own(names[i], &pair, NULL));
    }
    for (size_t i = 0; i < TD_COUNT(keys); i++) {
        td_err err = {0};
        if (td_keys_allow("x", keys[i], &err))
            fail_msg("\"%s\" was allowed", keys[i]);
        assert_int_equal(err.code, TD_E_USAGE);
        assert_false(td_keys_is_allowed(keys[i], name));
    }
    key_ring_remove(&r);
}

static void test_a_name_stands_for_one_key(void **state)
{
    (void)state;
    key_ring r;
    td_err err = {0};
    char key[TD_KEY_TEXT], name[TD_KEY_NAME_MAX + 1];
    key_ring_make(&r);
    assert_true(td_keys_allow("client", r.client, &err)); /* again: nothing to do */
    assert_false(td_keys_allow("client", r.stranger, &err));
    assert_non_null(strstr(err.message, "client"));
    td_err_clear(&err);
    assert_false(td_keys_allow("worker", r.stranger, &err)); /* our own pair has another */
    assert_true(td_keys_allow("worker", r.worker, NULL));
    assert_true(td_keys_is_allowed(r.worker, name));
    assert_string_equal(name, "worker");
    assert_false(td_keys_is_allowed(r.stranger, name));
    assert_true(td_keys_read_public("stranger", key, NULL)); /* our own, by name */
    assert_string_equal(key, r.stranger);
    td_err_clear(&err);
    td_key_pair pair;
    assert_false(td_keys_read_own(NULL, &pair, &err)); /* which? */
    assert_non_null(strstr(err.message, "--key"));
    td_err_clear(&err);
    assert_false(td_keys_read_public("nobody", key, &err));
    assert_int_equal(err.code, TD_E_USAGE);

    td_key_name *names = calloc(TD_KEYS_MAX, sizeof *names);
    uint32_t n;
    assert_true(td_keys_list(names, &n, NULL));
    assert_int_equal(n, 3);
    assert_string_equal(names[0].name, "client");
    assert_true(names[0].is_own && names[0].is_allowed);
    assert_string_equal(names[1].name, "stranger");
    assert_true(names[1].is_own && !names[1].is_allowed);
    free(names);
    key_ring_remove(&r);
}

static void write_text(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

/* What is open to others is refused, and lets nobody in. */
static void test_open_files_and_folders_are_refused(void **state)
{
    (void)state;
    key_ring r;
    td_key_pair pair;
    char key_file[160], pub_file[160], name[TD_KEY_NAME_MAX + 1], key[TD_KEY_TEXT];
    static const mode_t modes[] = {0640, 0604, 0620, 0666, 0644, 0601};
    key_ring_make(&r);
    key_path(&r, "client.key", key_file);
    key_path(&r, "client.pub", pub_file);
    for (size_t i = 0; i < TD_COUNT(modes); i++) {
        td_err err = {0};
        assert_int_equal(chmod(key_file, modes[i]) | chmod(pub_file, modes[i]), 0);
        assert_false(td_keys_read_own("client", &pair, &err));
        assert_int_equal(err.code, TD_E_DATA);
        assert_non_null(strstr(err.message, "0600"));
        assert_false(td_keys_is_allowed(r.client, name));
    }
    assert_int_equal(chmod(key_file, 0600) | chmod(pub_file, 0600), 0);
    assert_true(td_keys_is_allowed(r.client, name));
    static const mode_t folder_modes[] = {0755, 0750, 0701, 0777};
    for (size_t i = 0; i < TD_COUNT(folder_modes); i++) {
        td_err err = {0};
        assert_int_equal(chmod(r.dir, folder_modes[i]), 0);
        assert_false(td_keys_is_allowed(r.client, name));
        assert_false(td_keys_read_own("client", &pair, &err));
        assert_non_null(strstr(err.message, "0700"));
        assert_false(td_keys_new("new", key, NULL));
    }
    assert_int_equal(chmod(r.dir, 0700), 0);
    char elsewhere[200];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", r.parent);
    assert_int_equal(rename(pub_file, elsewhere) | symlink(elsewhere, pub_file), 0);
    assert_false(td_keys_is_allowed(r.client, name)); /* a link is not followed */
    unlink(elsewhere);
    key_ring_remove(&r);
}

/* A file may be named instead, and read by others, as it is public. */
static void test_files_are_read_strictly(void **state)
{
    (void)state;
    key_ring r;
    char text[400], path[200], key[TD_KEY_TEXT];
    key_ring_make(&r);
    snprintf(path, sizeof path, "%s/k", r.parent);
    const char *const good[] = {"%s\n", "%s", "public %s\n", "%s\r\n", "public %s\r\n"};
    const char *const bad[] = {"",         "\n",          "%s\n\n",    " %s",
                               "%s %s",    "Public %s",   "secret %s", "public %s\nsecret %s\n",
                               "%s\r\n\r", "public  %s\n"};
    for (size_t i = 0; i < TD_COUNT(good); i++) {
        snprintf(text, sizeof text, good[i], r.worker);
        write_text(path, text, 0644);
        assert_true(td_keys_read_public(path, key, NULL));
        assert_string_equal(key, r.worker);
    }
    for (size_t i = 0; i < TD_COUNT(bad); i++) {
        td_err err = {0};
        snprintf(text, sizeof text, bad[i], r.worker, r.worker);
        write_text(path, text, 0644);
        if (td_keys_read_public(path, key, &err))
            fail_msg("%s was taken for a public key", text);
        assert_int_equal(err.code, TD_E_DATA);
    }
    write_text(path, r.worker, 0666);
    assert_false(td_keys_read_public(path, key, NULL)); /* anybody may have put another there */
    assert_false(td_keys_read_public(r.parent, key, NULL));
    unlink(path);

    /* A pair with Windows' ends of lines, one of two halves, and one of the manual's. */
    td_key_pair a, b;
    td_err err = {0};
    char file[160];
    assert_true(td_keys_read_own("worker", &a, NULL) && td_keys_read_own("client", &b, NULL));
    key_path(&r, "copied.key", file);
    snprintf(text, sizeof text, "public %s\r\nsecret %s\r\n", a.public_key, a.secret);
    write_text(file, text, 0600);
    assert_true(td_keys_read_own("copied", &a, NULL));
    key_path(&r, "mixed.key", file);
    snprintf(text, sizeof text, "public %s\nsecret %s\n", a.public_key, b.secret);
    write_text(file, text, 0600);
    assert_false(td_keys_read_own("mixed", &a, &err));
    assert_non_null(strstr(err.message, "halves"));
    assert_null(strstr(err.message, b.secret));
    write_text(file,
               "public rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7\n"
               "secret JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6\n",
               0600);
    td_err_clear(&err);
    assert_false(td_keys_read_own("mixed", &a, &err));
    assert_non_null(strstr(err.message, "manual"));
    key_ring_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_pair_is_made_once_and_stays_secret),
        cmocka_unit_test(test_names_and_keys_are_checked),
        cmocka_unit_test(test_a_name_stands_for_one_key),
        cmocka_unit_test(test_open_files_and_folders_are_refused),
        cmocka_unit_test(test_files_are_read_strictly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
