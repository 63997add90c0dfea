/* A folder of keys of a test's own, a free port, and raw sockets of other minds. */
#ifndef TD_TESTS_AUTH_COMMON_H
#define TD_TESTS_AUTH_COMMON_H

#include "tests/link_common.h"
#include "transport/keys.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <zmq.h>

typedef struct {
    char parent[64], dir[80];
    int port;
    char bound[64], named[96]; /* tcp://127.0.0.1:PORT, and with ",worker" behind */
    char worker[TD_KEY_TEXT], client[TD_KEY_TEXT], stranger[TD_KEY_TEXT];
} key_ring;

static inline int free_port(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    close(fd);
    return ntohs(a.sin_port);
}

static inline void must_make(const char *name, char key[TD_KEY_TEXT])
{
    td_err err = {0};
    if (!td_keys_new(name, key, &err))
        fail_msg("%s", err.message);
}

static inline void must_allow(const char *name, const char *key)
{
    td_err err = {0};
    if (!td_keys_allow(name, key, &err))
        fail_msg("%s", err.message);
}

static inline void key_path(const key_ring *r, const char *file, char path[160])
{
    snprintf(path, 160, "%s/%s", r->dir, file);
}

/* Pairs "worker", "client" and "stranger"; only "client" is let in. */
static inline void key_ring_make(key_ring *r)
{
    *r = (key_ring){.port = free_port()};
    snprintf(r->parent, sizeof r->parent, P_tmpdir "/tandem-test-XXXXXX");
    assert_non_null(mkdtemp(r->parent));
    snprintf(r->dir, sizeof r->dir, "%s/keys", r->parent);
    assert_int_equal(setenv("TANDEM_KEYS_DIR", r->dir, 1), 0);
    must_make("worker", r->worker);
    must_make("client", r->client);
    must_make("stranger", r->stranger);
    must_allow("client", r->client);
    snprintf(r->bound, sizeof r->bound, "tcp://127.0.0.1:%d", r->port);
    snprintf(r->named, sizeof r->named, "%s,worker", r->bound);
}

static inline void key_ring_remove(key_ring *r)
{
    DIR *d = opendir(r->dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", r->dir, e->d_name);
        unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(r->dir);
    rmdir(r->parent);
    unsetenv("TANDEM_KEYS_DIR");
}

#endif
