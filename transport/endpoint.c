/* The policy of endpoints. It is strict in what it reads: a host is four decimal numbers or one of
 * two words, a port one number. The message library's own parser knows more (interface names,
 * wildcards, "source;destination", abstract sockets), and each of these would open a door. */
#include "transport/endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FORMS "allowed: inproc://NAME, ipc://PATH, tcp://127.0.0.1:PORT"

static bool refuse(const char *text, const char *why, td_err *err)
{
    return td_err_set(err, TD_E_USAGE, "endpoint \"%.200s\": %s", text, why);
}

/* Reads 1..max_digits decimal digits worth min..max; moves *p past them. */
static bool read_number(const char **p, int max_digits, unsigned min, unsigned max)
{
    unsigned value = 0;
    int n = 0;
    for (; n < max_digits && **p >= '0' && **p <= '9'; n++, ++*p)
        value = value * 10 + (unsigned)(**p - '0');
    return n > 0 && value >= min && value <= max;
}

/* 127.a.b.c in four plain decimal numbers. */
static bool read_loopback_v4(const char **p)
{
    if (!read_number(p, 3, 127, 127))
        return false;
    for (int i = 0; i < 3; i++)
        if (*(*p)++ != '.' || !read_number(p, 3, 0, 255))
            return false;
    return true;
}

static bool parse_tcp(const char *text, td_endpoint *out, td_err *err)
{
    const char *host = text + strlen("tcp://"), *p = host;
    int n_host;
    if (strncmp(p, "localhost:", 10) == 0) {
        p += 9;
        host = "127.0.0.1"; /* not the resolver's idea of it */
        n_host = 9;
    } else if (strncmp(p, "[::1]:", 6) == 0) {
        p += 5;
        n_host = 5;
        out->is_ipv6 = true;
    } else {
        if (!read_loopback_v4(&p) || *p != ':')
            return refuse(text,
                          "only loopback is allowed (127.0.0.0/8, [::1], localhost), because peers "
                          "are not authenticated; to reach another machine, forward a port "
                          "through ssh",
                          err);
        n_host = (int)(p - host);
    }
    const char *port = ++p;
    if (!read_number(&p, 5, 1, 65535) || *p != 0)
        return refuse(text, "the port must be a number from 1 to 65535", err);
    out->kind = TD_ENDPOINT_TCP;
    snprintf(out->address, sizeof out->address, "tcp://%.*s:%s", n_host, host, port);
    return true;
}

static bool parse_ipc(const char *text, td_endpoint *out, td_err *err)
{
    const char *path = text + strlen("ipc://");
    if (path[0] == 0 || path[strlen(path) - 1] == '/')
        return refuse(text, "ipc:// needs the path of a socket file", err);
    if (path[0] == '@')
        return refuse(text,
                      "abstract sockets have no file permissions, so anyone could connect; name "
                      "a path in a directory of your own",
                      err);
    if (strcmp(path, "*") == 0)
        return refuse(text, "wildcards are not allowed; name a path", err);
    size_t max = sizeof((struct sockaddr_un *)0)->sun_path - 1;
    if (strlen(path) > max)
        return td_err_set(err, TD_E_USAGE,
                          "endpoint \"%.200s\": the path has %zu bytes; allowed: at most %zu", text,
                          strlen(path), max);
    out->kind = TD_ENDPOINT_IPC;
    out->path = path;
    snprintf(out->address, sizeof out->address, "%s", text);
    return true;
}

bool td_endpoint_parse(const char *text, td_endpoint *out, td_err *err)
{
    *out = (td_endpoint){0};
    for (const char *p = text; *p; p++)
        if (*p <= 0x20 || *p == 0x7f)
            return refuse(text, "spaces, control characters and non-ASCII bytes are not allowed",
                          err);
    if (strncmp(text, "tcp://", 6) == 0)
        return parse_tcp(text, out, err);
    if (strncmp(text, "ipc://", 6) == 0)
        return parse_ipc(text, out, err);
    if (strncmp(text, "inproc://", 9) != 0)
        return refuse(text, FORMS, err);
    if (text[9] == 0 || strlen(text) >= sizeof out->address)
        return refuse(text, "inproc:// needs a name of at most 118 bytes", err);
    out->kind = TD_ENDPOINT_INPROC;
    snprintf(out->address, sizeof out->address, "%s", text);
    return true;
}

/* Where a socket may lie instead; never a word on the mode of what others use too. */
static bool refuse_directory(const char *dir, const char *path, const char *why, td_err *err)
{
    const char *own = getenv("XDG_RUNTIME_DIR"), *slash = strrchr(path, '/');
    char place[2 * sizeof((struct sockaddr_un *)0)->sun_path];
    if (own && *own == '/' && strcmp(own, dir))
        snprintf(place, sizeof place, "%s/tandem", own);
    else
        snprintf(place, sizeof place, "%s/tandem-%u", dir, (unsigned)geteuid());
    return td_err_set(err, TD_E_USAGE,
                      "endpoint directory %s: %s; name a path in a directory that is yours alone, "
                      "say ipc://%s/%s (made if it is missing)",
                      dir, why, place, slash ? slash + 1 : path);
}

/* The directory must be ours alone: whoever may write to it may put a socket in our place. */
static bool check_directory(const char *path, bool is_bound, td_err *err)
{
    char why[160];
    char dir[sizeof((struct sockaddr_un *)0)->sun_path + 2];
    const char *slash = strrchr(path, '/');
    if (!slash)
        snprintf(dir, sizeof dir, ".");
    else
        snprintf(dir, sizeof dir, "%.*s", slash == path ? 1 : (int)(slash - path), path);

    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return td_err_set(err, errno == ENOENT ? TD_E_USAGE : TD_E_IO,
                          "endpoint directory %s: cannot be made: %s", dir, strerror(errno));
    struct stat st;
    if (lstat(dir, &st) != 0)
        return td_err_set(err, TD_E_IO, "endpoint directory %s: %s", dir, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return td_err_set(err, TD_E_USAGE,
                          "endpoint directory %s: not a directory (a link is not followed)", dir);
    if (st.st_uid != geteuid()) {
        snprintf(why, sizeof why, "belongs to user %u; allowed: our own user %u",
                 (unsigned)st.st_uid, (unsigned)geteuid());
        return refuse_directory(dir, path, why, err);
    }
    if (st.st_mode & 022) {
        snprintf(why, sizeof why,
                 "mode %04o lets others write to it; allowed: writable by its owner only",
                 (unsigned)(st.st_mode & 07777));
        return refuse_directory(dir, path, why, err);
    }
    if (is_bound && access(dir, W_OK | X_OK) != 0)
        return td_err_set(err, TD_E_IO, "endpoint directory %s: no socket can be made there: %s",
                          dir, strerror(errno));
    return true;
}

/* A socket somebody listens on must not be taken away: binding would unlink it. */
static bool check_unused(const char *path, td_err *err)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ||
               td_err_set(err, TD_E_IO, "endpoint ipc://%s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return td_err_set(err, TD_E_USAGE, "endpoint ipc://%s: the path exists and is no socket",
                          path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "endpoint ipc://%s: socket: %s", path, strerror(errno));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strlen(path)); /* the parser held it below sun_path's size */
    bool is_used = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    if (is_used)
        return td_err_set(err, TD_E_UNAVAILABLE,
                          "endpoint ipc://%s: in use by another worker; choose another path or "
                          "stop that one",
                          path);
    return true;
}

/* A port that somebody listens on. Asked as the transport does, which may take one over that was
 * closed a moment ago. */
static bool check_port(const td_endpoint *endpoint, td_err *err)
{
    const char *port = strrchr(endpoint->address, ':');
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    char host[TD_ENDPOINT_MAX];
    snprintf(host, sizeof host, "%.*s", (int)(port - endpoint->address - 6), endpoint->address + 6);
    v4.sin_port = v6.sin6_port = htons((uint16_t)strtoul(port + 1, NULL, 10));
    if (!endpoint->is_ipv6 && inet_pton(AF_INET, host, &v4.sin_addr) != 1)
        return true; /* the transport will say what it thinks of it */
    int fd = socket(endpoint->is_ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        return td_err_set(err, TD_E_IO, "endpoint %s: socket: %s", endpoint->address,
                          strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int result = endpoint->is_ipv6 ? bind(fd, (struct sockaddr *)&v6, sizeof v6)
                                   : bind(fd, (struct sockaddr *)&v4, sizeof v4);
    int error = errno;
    close(fd);
    return result == 0 || td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: cannot bind: %s",
                                     endpoint->address, strerror(error));
}

bool td_endpoint_prepare(const td_endpoint *endpoint, bool is_bound, td_err *err)
{
    if (endpoint->kind == TD_ENDPOINT_TCP)
        return !is_bound || check_port(endpoint, err);
    return endpoint->kind == TD_ENDPOINT_INPROC ||
           (check_directory(endpoint->path, is_bound, err) &&
            (!is_bound || check_unused(endpoint->path, err)));
}

bool td_endpoint_check(const char *text, bool is_bound, td_err *err)
{
    td_endpoint e;
    if (!td_endpoint_parse(text, &e, err))
        return false;
    if (e.kind == TD_ENDPOINT_INPROC)
        return refuse(text,
                      "another process cannot reach it; allowed: ipc://PATH, tcp://127.0.0.1:PORT",
                      err);
    return td_endpoint_prepare(&e, is_bound, err);
}
