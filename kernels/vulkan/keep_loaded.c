/* Drivers under AddressSanitizer. The loader takes a driver out of memory with its instance, and by
 * the time leaks are looked for at exit, nobody knows any more what pointed to its memory, nor by
 * which library it was allocated. So here what came in with an instance stays, and is named to the
 * sanitizer, whatever the driver is called: its leaks and the loader's are not ours to mend. Our
 * own objects are counted by the validation layers. */
#include "kernels/vulkan/vk.h"

#ifdef __SANITIZE_ADDRESS__

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define LIBRARIES_MAX  256u
#define PATH_BYTES_MAX 512u
#define LOADER         "leak:libvulkan.so\n"

typedef struct {
    char names[LIBRARIES_MAX][PATH_BYTES_MAX]; /* their paths */
    uint32_t n;
} library_list;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static library_list before, after; /* the first instance; this one */
static char suppressions[LIBRARIES_MAX * (PATH_BYTES_MAX + 8)] = LOADER;

static int add(struct dl_phdr_info *info, size_t size, void *context)
{
    library_list *list = context;
    (void)size;
    size_t n = strlen(info->dlpi_name);
    if (n && n < PATH_BYTES_MAX && list->n < LIBRARIES_MAX)
        memcpy(list->names[list->n++], info->dlpi_name, n + 1);
    return 0;
}

static bool has(const library_list *list, const char *name)
{
    for (uint32_t i = 0; i < list->n; i++)
        if (!strcmp(list->names[i], name))
            return true;
    return false;
}

void td_vk_loaded_before(void)
{
    pthread_mutex_lock(&lock);
    if (!before.n)
        dl_iterate_phdr(add, &before);
    pthread_mutex_unlock(&lock);
}

void td_vk_keep_loaded(void)
{
    pthread_mutex_lock(&lock);
    after.n = 0;
    dl_iterate_phdr(add, &after);
    size_t at = strlen(LOADER);
    for (uint32_t i = 0; i < after.n; i++) {
        const char *name = after.names[i];
        if (has(&before, name) || !dlopen(name, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE))
            continue;
        at += (size_t)snprintf(suppressions + at, sizeof suppressions - at, "leak:%s\n", name);
    }
    pthread_mutex_unlock(&lock);
}

/* Asked for at exit, when a leak was found (sanitizer/lsan_interface.h). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return suppressions; }
const char *__lsan_default_options(void);
const char *__lsan_default_options(void) { return "print_suppressions=0"; }

#else

void td_vk_loaded_before(void) {}
void td_vk_keep_loaded(void) {}

#endif
