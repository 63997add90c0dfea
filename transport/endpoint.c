/* The policy of endpoints. It is strict in what it reads: a host is four decimal numbers, an IPv6
 * address in brackets or a plain name, a port one number. The message library's own parser knows
 * more (interface names, "source;destination", abstract sockets), and each of these would open a
 * door. What is off loopback is marked here and secured in link_zmq.c, which has no other way to
 * open it. */
#include "transport/endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define FORMS         "allowed: inproc://NAME, ipc://PATH, tcp://HOST:PORT"
#define HOST_NAME_MAX 253

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

/* Four plain decimal numbers. */
static bool read_v4(const char **p)
{
    for (int i = 0; i < 4; i++)
        if ((i > 0 && *(*p)++ != '.') || !read_number(p, 3, 0, 255))
            return false;
    return true;
}

/* "[ADDRESS]"; none that is a v4 address in disguise. */
static bool read_v6(const char **p)
{
    const char *end = **p == '[' ? strchr(*p, ']') : NULL;
    char text[INET6_ADDRSTRLEN];
    struct in6_addr address;
    if (!end || (size_t)(end - *p - 1) >= sizeof text)
        return false;
    snprintf(text, sizeof text, "%.*s", (int)(end - *p - 1), *p + 1);
    *p = end + 1;
    return inet_pton(AF_INET6, text, &address) == 1 && !IN6_IS_ADDR_V4MAPPED(&address) &&
           !IN6_IS_ADDR_V4COMPAT(&address) && !IN6_IS_ADDR_MULTICAST(&address);
}

/* Letters, digits, '.', '-'; the last part no number, or it would be a v4 address in disguise. */
static bool read_name(const char **p)
{
    static const char letters[] =
        "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-";
    const char *start = *p;
    size_t n = strspn(start, letters);
    *p += n;
    if (n < 1 || n > HOST_NAME_MAX || *start == '-' || *start == '.' || start[n - 1] == '-')
        return false;
    const char *last = *p - 1;
    while (last > start && last[-1] != '.')
        last--;
    return *last < '0' || *last > '9';
}

/* The host of a tcp endpoint up to its ':'. Fills in what kind it is. */
static bool parse_host(const char *text, const char **p, bool is_bound, td_endpoint *out,
                       td_err *err)
{
    const char *host = *p;
    if (is_bound && strncmp(host, "*:", 2) == 0) {
        ++*p;
        out->is_open = true;
    } else if (*host == '[') {
        if (!read_v6(p))
            return refuse(text, "the host is no IPv6 address", err);
        out->is_ipv6 = true;
        out->is_open = strncmp(host, "[::1]", 5) != 0;
        if (!is_bound && strncmp(host, "[::]", 4) == 0)
            return refuse(text, "a wildcard can be bound, not connected to", err);
    } else if (strspn(host, "0123456789.") == strcspn(host, ":")) {
        if (!read_v4(p))
            return refuse(text, "the host is no IPv4 address of four numbers", err);
        unsigned first = (unsigned)strtoul(host, NULL, 10);
        out->is_open = first != 127;
        if (first >= 224 || (first == 0 && (!is_bound || strncmp(host, "0.0.0.0:", 8) != 0)))
            return refuse(text, "no address that can be connected to", err);
    } else {
        if (!read_name(p))
            return refuse(text, "the host is no address and no name", err);
        out->is_name = strncmp(host, "localhost:", 10) != 0; /* not the resolver's idea of it */
        out->is_open = out->is_name;
        if (is_bound && out->is_name)
            return refuse(text, "an address of this machine is bound, not a name", err);
    }
    return true;
}

static bool parse_tcp(const char *text, bool is_bound, td_endpoint *out, td_err *err)
{
    const char *host = text + strlen("tcp://"), *p = host;
    if (!parse_host(text, &p, is_bound, out, err))
        return false;
    int n_host = (int)(p - host);
    const char *port = p + 1;
    if (*p != ':' || (p = port, !read_number(&p, 5, 1, 65535)) || (*p != 0 && *p != ','))
        return refuse(text, "the port must be a number from 1 to 65535", err);
    int n_port = (int)(p - port);
    out->key = *p == ',' ? p + 1 : NULL;
    if (out->key && is_bound)
        return refuse(text, "a key behind ',' is the other end's; --key names our own", err);
    if (out->key && !*out->key)
        return refuse(text,
                      "behind ',' stands the worker's public key: a name of `tandem keys`, or "
                      "a file's path with a '/'",
                      err);
    if (out->is_open && !is_bound && !out->key)
        return refuse(text,
                      "off loopback (127.0.0.0/8, [::1], localhost) peers must show keys: put the "
                      "worker's behind it, EP,KEY (see `tandem keys --help`)",
                      err);
    bool is_any = *host == '*' || strncmp(host, "0.0.0.0:", 8) == 0;
    bool is_any_v6 = is_bound && strncmp(host, "[::]:", 5) == 0;
    if (strncmp(host, "localhost:", 10) == 0) {
        host = "127.0.0.1";
        n_host = 9;
    } else if (is_any) {
        host = "0.0.0.0";
        n_host = 7;
    }
    out->kind = TD_ENDPOINT_TCP;
    snprintf(out->address, sizeof out->address, "tcp://%.*s:%.*s", n_host, host, n_port, port);
    snprintf(out->local, sizeof out->local, "tcp://%.*s:%.*s",
             is_any      ? 9
             : is_any_v6 ? 5
                         : n_host,
             is_any      ? "127.0.0.1"
             : is_any_v6 ? "[::1]"
                         : host,
             n_port, port);
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

bool td_endpoint_parse(const char *text, bool is_bound, td_endpoint *out, td_err *err)
{
    *out = (td_endpoint){0};
    for (const char *p = text; *p; p++)
        if (*p <= 0x20 || *p == 0x7f)
            return refuse(text, "spaces, control characters and non-ASCII bytes are not allowed",
                          err);
    if (strncmp(text, "tcp://", 6) == 0)
        return parse_tcp(text, is_bound, out, err);
    if (strncmp(text, "ipc://", 6) == 0)
        return parse_ipc(text, out, err);
    if (strncmp(text, "inproc://", 9) != 0)
        return refuse(text, FORMS, err);
    if (text[9] == 0 || strlen(text) > 127)
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

/* The host of an address as getaddrinfo wants it, and its port. */
static struct addrinfo *find_addresses(const td_endpoint *e, int flags, int *error)
{
    const char *port = strrchr(e->address, ':');
    char host[TD_ENDPOINT_MAX];
    int is_bracketed = e->is_ipv6;
    snprintf(host, sizeof host, "%.*s", (int)(port - e->address - 6 - 2 * is_bracketed),
             e->address + 6 + is_bracketed);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags}, *found = NULL;
    *error = getaddrinfo(host, port + 1, &hints, &found);
    return *error ? NULL : found;
}

/* A port that somebody listens on. Asked as the transport does, which may take one over that was
 * closed a moment ago. */
static bool check_port(const td_endpoint *endpoint, td_err *err)
{
    int on = 1, error;
    struct addrinfo *a = find_addresses(endpoint, AI_NUMERICHOST | AI_NUMERICSERV, &error);
    if (!a)
        return td_err_set(err, TD_E_IO, "endpoint %s: %s", endpoint->address, gai_strerror(error));
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = fd < 0 ? -1 : setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (result == 0)
        result = bind(fd, a->ai_addr, a->ai_addrlen);
    error = errno;
    if (fd >= 0)
        close(fd);
    freeaddrinfo(a);
    return result == 0 || td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: cannot bind: %s",
                                     endpoint->address, strerror(error));
}

/* The transport looks a name up itself, each time it connects; here it is learned whether there is
 * such a one, and which family to ask it for. */
static bool look_up(td_endpoint *endpoint, td_err *err)
{
    int error;
    struct addrinfo *all = find_addresses(endpoint, AI_NUMERICSERV, &error);
    if (!all)
        return td_err_set(err, TD_E_UNAVAILABLE, "endpoint %s: the host's name: %s",
                          endpoint->address, gai_strerror(error));
    endpoint->is_ipv6 = true;
    for (const struct addrinfo *a = all; a; a = a->ai_next)
        if (a->ai_family == AF_INET)
            endpoint->is_ipv6 = false;
    freeaddrinfo(all);
    return true;
}

bool td_endpoint_prepare(td_endpoint *endpoint, bool is_bound, td_err *err)
{
    if (endpoint->kind == TD_ENDPOINT_TCP)
        return is_bound ? check_port(endpoint, err) : !endpoint->is_name || look_up(endpoint, err);
    return endpoint->kind == TD_ENDPOINT_INPROC ||
           (check_directory(endpoint->path, is_bound, err) &&
            (!is_bound || check_unused(endpoint->path, err)));
}
