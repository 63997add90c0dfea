/* Reading is strict, as of everything that decides who gets in: the owner, the mode and the form
 * of a file are looked at before its content, on the descriptor that is then read, so that it
 * cannot be exchanged in between. Writing makes a whole file under another name first and links it
 * in: a worker that looks at that moment finds the key or does not. */
#include "transport/keys.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#define FILE_BYTES_MAX 512
#define KEY_CHARS      (TD_KEY_TEXT - 1)

/* --- Keys and names ------------------------------------------------------------------------- */

/* Of zmq_curve(7), with their secret halves. */
static const char *const known_to_all[] = {
    "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID",
    "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
    "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs",
    "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6",
};

static bool is_z85(const char *key)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  ".-:+=^!/*?&<>()[]{}@%$#";
    uint8_t bytes[32];
    char again[TD_KEY_TEXT];
    return strlen(key) == KEY_CHARS && strspn(key, letters) == KEY_CHARS &&
           zmq_z85_decode(bytes, key) && zmq_z85_encode(again, bytes, sizeof bytes) &&
           !strcmp(key, again);
}

bool td_key_check(const char *key, td_err *err)
{
    if (!is_z85(key))
        return td_err_set(
            err, TD_E_USAGE,
            "%s is no key; allowed: the 40 characters that `tandem keys show` prints, "
            "in single quotes in a shell",
            td_text_quote(key, strlen(key)).text);
    for (size_t i = 0; i < TD_COUNT(known_to_all); i++)
        if (!strcmp(key, known_to_all[i]))
            return td_err_set(err, TD_E_USAGE,
                              "key %s is one of those printed in ZeroMQ's manual: everybody has "
                              "its secret half; make a pair with `tandem keys new`",
                              key);
    if (strspn(key, "0") == KEY_CHARS)
        return td_err_set(err, TD_E_USAGE, "a key of zeros is none");
    return true;
}

static bool check_name(const char *name, td_err *err)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "._-";
    size_t n = strlen(name);
    if (n >= 1 && n <= TD_KEY_NAME_MAX && strspn(name, letters) == n && *name != '.' &&
        *name != '-')
        return true;
    return td_err_set(err, TD_E_USAGE,
                      "name of a key: %s; allowed: 1 to %d letters, digits, '.', '_' and '-', the "
                      "first a letter, a digit or '_'",
                      td_text_quote(name, n).text, TD_KEY_NAME_MAX);
}

void td_key_wipe(td_key_pair *pair) { explicit_bzero(pair, sizeof *pair); }

/* --- The folder ----------------------------------------------------------------------------- */

static bool find_folder(char path[PATH_MAX], td_err *err)
{
    const char *own = getenv("TANDEM_KEYS_DIR"), *config = getenv("XDG_CONFIG_HOME");
    const char *home = getenv("HOME");
    int n;
    if (own && *own)
        n = snprintf(path, PATH_MAX, "%s", own);
    else if (config && *config == '/')
        n = snprintf(path, PATH_MAX, "%s/tandem/keys", config);
    else if (home && *home == '/')
        n = snprintf(path, PATH_MAX, "%s/.config/tandem/keys", home);
    else
        return td_err_set(err, TD_E_USAGE,
                          "there is no folder for keys: set HOME, XDG_CONFIG_HOME or "
                          "TANDEM_KEYS_DIR");
    return (n > 0 && n < PATH_MAX - TD_KEY_NAME_MAX - 32) ||
           td_err_set(err, TD_E_USAGE, "the path of the folder of keys is too long: %d bytes", n);
}

/* Makes the folder and those above it; what is there stays as it is. */
static bool make_folder(const char *path, td_err *err)
{
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *p = part + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = 0;
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return td_err_set(err, TD_E_IO, "folder of keys %s: %s", part, strerror(errno));
        *p = '/';
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST ||
           td_err_set(err, TD_E_IO, "folder of keys %s: %s", path, strerror(errno));
}

/* The folder, which must be ours alone. *is_there: false for one that is missing, no error. */
static bool look_at_folder(char path[PATH_MAX], bool *is_there, td_err *err)
{
    struct stat st;
    *is_there = false;
    if (!find_folder(path, err))
        return false;
    if (stat(path, &st) != 0)
        return errno == ENOENT ||
               td_err_set(err, TD_E_IO, "folder of keys %s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return td_err_set(err, TD_E_DATA, "folder of keys %s: no directory", path);
    if (st.st_uid != geteuid())
        return td_err_set(err, TD_E_DATA,
                          "folder of keys %s: belongs to user %u; allowed: our own user %u", path,
                          (unsigned)st.st_uid, (unsigned)geteuid());
    if (st.st_mode & 077)
        return td_err_set(err, TD_E_DATA,
                          "folder of keys %s: mode %04o lets others in; allowed: 0700 (chmod 700 "
                          "%s, and think whether its keys are still secret)",
                          path, (unsigned)(st.st_mode & 07777), path);
    *is_there = true;
    return true;
}

/* FOLDER/NAME.SUFFIX, whether it is there or not. */
static bool path_of(const char *name, const char *suffix, char path[PATH_MAX], td_err *err)
{
    bool is_there;
    if (!check_name(name, err) || !look_at_folder(path, &is_there, err))
        return false;
    size_t n = strlen(path);
    snprintf(path + n, PATH_MAX - n, "/%s.%s", name, suffix);
    return true;
}

/* --- Files ---------------------------------------------------------------------------------- */

/* Its text, after a look at whose it is. is_secret: nobody else may even read it. *is_there: false
 * for a file that is missing, no error. */
static bool read_file(const char *path, bool is_secret, char text[FILE_BYTES_MAX + 1],
                      bool *is_there, td_err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (is_secret ? O_NOFOLLOW : 0));
    *is_there = fd >= 0;
    if (fd < 0)
        return errno == ENOENT ||
               td_err_set(err, TD_E_IO, "key file %s: %s", path,
                          errno == ELOOP ? "a link is not followed" : strerror(errno));
    ssize_t n = -1;
    mode_t open_to_others = is_secret ? 077 : 022;
    if (fstat(fd, &st) != 0)
        td_err_set(err, TD_E_IO, "key file %s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode) || st.st_size > FILE_BYTES_MAX)
        td_err_set(err, TD_E_DATA, "key file %s: no regular file of at most %d bytes", path,
                   FILE_BYTES_MAX);
    else if (st.st_uid != geteuid() && (is_secret || st.st_uid != 0))
        td_err_set(err, TD_E_DATA, "key file %s: belongs to user %u; allowed: our own user %u",
                   path, (unsigned)st.st_uid, (unsigned)geteuid());
    else if (st.st_mode & open_to_others)
        td_err_set(err, TD_E_DATA, "key file %s: mode %04o lets others %s it; allowed: %s", path,
                   (unsigned)(st.st_mode & 07777), is_secret ? "at" : "write to",
                   is_secret ? "0600" : "0644 or less");
    else if ((n = read(fd, text, FILE_BYTES_MAX)) < 0)
        td_err_set(err, TD_E_IO, "key file %s: %s", path, strerror(errno));
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n >= 0;
}

/* The key behind "WORD " at *p; moves behind the end of its line, which may be one of Windows. */
static bool read_line(const char **p, const char *word, char key[TD_KEY_TEXT])
{
    size_t n_word = strlen(word);
    if (strncmp(*p, word, n_word) != 0)
        return false;
    size_t n_line = strcspn(*p + n_word, "\n");
    size_t n = n_line - (n_line > 0 && (*p)[n_word + n_line - 1] == '\r');
    if (n != KEY_CHARS)
        return false;
    memcpy(key, *p + n_word, n);
    key[n] = 0;
    *p += n_word + n_line;
    *p += **p == '\n';
    return is_z85(key);
}

/* A public key alone, with or without its word: what `tandem keys show` prints is one too. */
static bool read_public_file(const char *path, bool is_secret, char key[TD_KEY_TEXT],
                             bool *is_there, td_err *err)
{
    char text[FILE_BYTES_MAX + 1];
    const char *p = text;
    if (!read_file(path, is_secret, text, is_there, err))
        return false;
    if (!*is_there)
        return true;
    bool is_ok = read_line(&p, strncmp(p, "public ", 7) ? "" : "public ", key) && !*p;
    if (!is_ok)
        td_err_set(err, TD_E_DATA, "key file %s: not one public key (a pair's own file is none)",
                   path);
    else if (!td_key_check(key, err))
        is_ok = td_err_prepend(err, "key file %s", path);
    explicit_bzero(text, sizeof text); /* if it was a pair after all */
    return is_ok;
}

static bool read_pair_file(const char *path, td_key_pair *pair, bool *is_there, td_err *err)
{
    char text[FILE_BYTES_MAX + 1], derived[TD_KEY_TEXT];
    const char *p = text;
    *pair = (td_key_pair){0};
    if (!read_file(path, true, text, is_there, err))
        return false;
    if (!*is_there)
        return true;
    bool is_ok =
        read_line(&p, "public ", pair->public_key) && read_line(&p, "secret ", pair->secret) && !*p;
    if (!is_ok)
        td_err_set(err, TD_E_DATA,
                   "key file %s: not the lines \"public KEY\" and \"secret KEY\" that `tandem keys "
                   "new` writes",
                   path);
    else if (!td_key_check(pair->public_key, err))
        is_ok = td_err_prepend(err, "key file %s", path);
    else if (zmq_curve_public(derived, pair->secret) != 0 || strcmp(derived, pair->public_key)) {
        is_ok = td_err_set(err, TD_E_DATA, "key file %s: its halves are not of one pair", path);
    }
    explicit_bzero(text, sizeof text);
    if (!is_ok)
        td_key_wipe(pair);
    return is_ok;
}

/* *is_new: false if something lies at the path already, no error. */
static bool write_file(const char *path, const char *text, bool *is_new, td_err *err)
{
    char draft[PATH_MAX];
    *is_new = false;
    if (snprintf(draft, sizeof draft, "%s.XXXXXX", path) >= (int)sizeof draft)
        return td_err_set(err, TD_E_USAGE, "key file %s: the path is too long", path);
    int fd = mkostemp(draft, O_CLOEXEC); /* mode 0600 */
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "key file %s: cannot be made: %s", path, strerror(errno));
    size_t n = strlen(text);
    bool is_written = write(fd, text, n) == (ssize_t)n && fsync(fd) == 0;
    if (!is_written)
        td_err_set(err, TD_E_IO, "key file %s: %s", path, strerror(errno));
    close(fd);
    if (is_written && link(draft, path) == 0)
        *is_new = true;
    else if (is_written && errno != EEXIST)
        is_written = td_err_set(err, TD_E_IO, "key file %s: %s", path, strerror(errno));
    unlink(draft);
    return is_written;
}

/* --- What is done with them ----------------------------------------------------------------- */

static bool prepare_folder(td_err *err)
{
    char path[PATH_MAX];
    bool is_there;
    return find_folder(path, err) && make_folder(path, err) && look_at_folder(path, &is_there, err);
}

bool td_keys_new(const char *name, char public_key[TD_KEY_TEXT], td_err *err)
{
    char path[PATH_MAX], other[PATH_MAX], text[FILE_BYTES_MAX];
    td_key_pair pair;
    bool is_new = false;
    if (!check_name(name, err) || !prepare_folder(err) || !path_of(name, "key", path, err) ||
        !path_of(name, "pub", other, err))
        return false;
    if (access(other, F_OK) == 0)
        return td_err_set(err, TD_E_USAGE,
                          "%s is the name of somebody's key already (%s); choose another", name,
                          other);
    if (zmq_curve_keypair(pair.public_key, pair.secret) != 0)
        return td_err_set(err, TD_E_UNAVAILABLE, "no key can be made: %s%s", zmq_strerror(errno),
                          errno == ENOTSUP ? " (this libzmq is built without CURVE)" : "");
    snprintf(text, sizeof text, "public %s\nsecret %s\n", pair.public_key, pair.secret);
    bool is_ok = write_file(path, text, &is_new, err);
    memcpy(public_key, pair.public_key, TD_KEY_TEXT);
    explicit_bzero(text, sizeof text);
    td_key_wipe(&pair);
    if (is_ok && !is_new)
        return td_err_set(err, TD_E_USAGE,
                          "there is a pair named %s already (%s); it stays as it is: choose "
                          "another name",
                          name, path);
    return is_ok;
}

bool td_keys_allow(const char *name, const char *key, td_err *err)
{
    char path[PATH_MAX], own[PATH_MAX], text[FILE_BYTES_MAX], there[TD_KEY_TEXT];
    td_key_pair pair;
    bool is_new = false, is_there = false;
    if (!check_name(name, err) || !td_key_check(key, err) || !prepare_folder(err) ||
        !path_of(name, "pub", path, err) || !path_of(name, "key", own, err) ||
        !read_pair_file(own, &pair, &is_there, err))
        return false;
    bool is_another = is_there && strcmp(pair.public_key, key) != 0;
    td_key_wipe(&pair);
    if (is_another)
        return td_err_set(err, TD_E_USAGE,
                          "%s is the name of a pair of our own with another key; choose another",
                          name);
    snprintf(text, sizeof text, "public %s\n", key);
    if (!write_file(path, text, &is_new, err) || is_new)
        return is_new;
    if (!read_public_file(path, true, there, &is_there, err))
        return false;
    return (is_there && !strcmp(there, key)) ||
           td_err_set(err, TD_E_USAGE,
                      "%s is let in with another key, %s; choose another name, or remove %s first",
                      name, there, path);
}

/* The name of the one pair there is. */
static bool find_only_pair(char name[TD_KEY_NAME_MAX + 1], td_err *err)
{
    uint32_t n, n_own = 0;
    char all[200] = "";
    td_key_name *names = td_alloc(TD_KEYS_MAX, sizeof *names, err);
    bool is_ok = names && td_keys_list(names, &n, err);
    for (uint32_t i = 0; is_ok && i < n; i++) {
        if (!names[i].is_own)
            continue;
        if (n_own++ == 0)
            snprintf(name, TD_KEY_NAME_MAX + 1, "%s", names[i].name);
        size_t at = strlen(all);
        snprintf(all + at, sizeof all - at, "%s%s", at ? ", " : "", names[i].name);
    }
    td_free(names);
    if (is_ok && n_own == 0)
        return td_err_set(err, TD_E_USAGE,
                          "there is no key of our own yet; `tandem keys new NAME` makes one");
    if (is_ok && n_own > 1)
        return td_err_set(err, TD_E_USAGE, "which key? There are %s; --key NAME says it", all);
    return is_ok;
}

bool td_keys_read_own(const char *name, td_key_pair *pair, td_err *err)
{
    char path[PATH_MAX], only[TD_KEY_NAME_MAX + 1];
    bool is_there;
    *pair = (td_key_pair){0};
    if (!name && !find_only_pair(only, err))
        return false;
    if (!path_of(name ? name : only, "key", path, err) ||
        !read_pair_file(path, pair, &is_there, err))
        return false;
    return is_there || td_err_set(err, TD_E_USAGE,
                                  "there is no pair named %s (%s); `tandem keys list` shows what "
                                  "there is, `tandem keys new %s` makes it",
                                  name ? name : only, path, name ? name : only);
}

bool td_keys_read_public(const char *name_or_file, char key[TD_KEY_TEXT], td_err *err)
{
    char path[PATH_MAX];
    bool is_there;
    if (name_or_file[0] == '=') {
        if (!td_key_check(name_or_file + 1, err))
            return false;
        memcpy(key, name_or_file + 1, TD_KEY_TEXT);
        return true;
    }
    if (strchr(name_or_file, '/')) {
        if (!read_public_file(name_or_file, false, key, &is_there, err))
            return false;
        return is_there || td_err_set(err, TD_E_USAGE, "key file %s: not there", name_or_file);
    }
    if (!path_of(name_or_file, "pub", path, err) ||
        !read_public_file(path, true, key, &is_there, err))
        return false;
    if (is_there)
        return true;
    td_key_pair own;
    if (!path_of(name_or_file, "key", path, err) || !read_pair_file(path, &own, &is_there, err))
        return false;
    memcpy(key, own.public_key, TD_KEY_TEXT);
    td_key_wipe(&own);
    return is_there || td_err_set(err, TD_E_USAGE,
                                  "no key is named %s; `tandem keys list` shows what there is (a "
                                  "file's path has a '/' in it: ./%s)",
                                  name_or_file, name_or_file);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const td_key_name *)a)->name, ((const td_key_name *)b)->name);
}

bool td_keys_list(td_key_name names[TD_KEYS_MAX], uint32_t *n_names, td_err *err)
{
    char path[PATH_MAX], name[TD_KEY_NAME_MAX + 1];
    bool is_there, is_ok = true;
    *n_names = 0;
    if (!look_at_folder(path, &is_there, err))
        return false;
    if (!is_there)
        return true;
    DIR *d = opendir(path);
    if (!d)
        return td_err_set(err, TD_E_IO, "folder of keys %s: %s", path, strerror(errno));
    for (struct dirent *e; is_ok && (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        const char *suffix = n > 4 ? e->d_name + n - 4 : "";
        bool is_own = !strcmp(suffix, ".key");
        if (!is_own && strcmp(suffix, ".pub") != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(n - 4), e->d_name);
        if (n - 4 > TD_KEY_NAME_MAX || !check_name(name, NULL))
            continue;
        uint32_t i = 0;
        while (i < *n_names && strcmp(names[i].name, name))
            i++;
        if (i == TD_KEYS_MAX)
            is_ok = td_err_set(err, TD_E_DATA, "folder of keys %s: more than %u names", path,
                               TD_KEYS_MAX);
        else if (i == *n_names)
            names[(*n_names)++] = (td_key_name){0};
        if (!is_ok)
            break;
        memcpy(names[i].name, name, sizeof name);
        *(is_own ? &names[i].is_own : &names[i].is_allowed) = true;
    }
    closedir(d);
    qsort(names, *n_names, sizeof *names, by_name);
    return is_ok;
}

bool td_keys_is_allowed(const char *key, char name[TD_KEY_NAME_MAX + 1])
{
    uint32_t n = 0;
    bool is_found = false;
    td_key_name *names = td_alloc(TD_KEYS_MAX, sizeof *names, NULL);
    if (!names || !td_key_check(key, NULL) || !td_keys_list(names, &n, NULL))
        n = 0;
    for (uint32_t i = 0; i < n && !is_found; i++) {
        char path[PATH_MAX], there[TD_KEY_TEXT];
        bool is_there;
        is_found = names[i].is_allowed && path_of(names[i].name, "pub", path, NULL) &&
                   read_public_file(path, true, there, &is_there, NULL) && is_there &&
                   !strcmp(there, key);
        if (is_found)
            memcpy(name, names[i].name, TD_KEY_NAME_MAX + 1);
    }
    td_free(names);
    return is_found;
}
