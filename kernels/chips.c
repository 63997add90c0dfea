/* Why one chip is listed twice: distributions install several Vulkan drivers side by side, and each
 * lists all it can drive. Laid over both, a model would take twice the memory there is and wait for
 * itself. Drivers of one chip agree on its PCI address (VK_EXT_pci_bus_info); the open ones of AMD
 * also on deviceUUID, which others make up as they like, down to zeros. So the address decides and
 * the UUID is asked where there is none. */
#include "kernels/chips.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define LIST_BYTES 800u /* of an error: what there is */

static const struct {
    uint32_t id; /* VkPhysicalDeviceProperties.vendorID */
    const char *name;
} vendors[] = {
    {0x1002, "AMD"},      {0x10de, "NVIDIA"}, {0x8086, "Intel"},  {0x13b5, "ARM"},
    {0x5143, "Qualcomm"}, {0x106b, "Apple"},  {0x1ae0, "Google"}, {0x10005, "Mesa"},
};

/* Drivers that may share a chip, by VkDriverId: the lower rank is preferred. The order is the one
 * of https://github.com/ggml-org/llama.cpp, ggml_vk_instance_init; a driver not listed here comes
 * behind those for the chip alone, before those that go through another driver. */
static const struct {
    uint32_t id;
    uint32_t rank;
    const char *name;
} drivers[] = {
    {3, 1, "radv"},     {2, 2, "amdvlk"},     {1, 3, "amd-proprietary"}, {4, 1, "nvidia"},
    {24, 2, "nvk"},     {6, 1, "anv"},        {5, 2, "intel"},           {8, 1, "qualcomm"},
    {18, 2, "turnip"},  {13, 50, "llvmpipe"}, {10, 50, "swiftshader"},   {22, 99, "venus"},
    {23, 100, "dozen"},
};
#define RANK_OTHERS 50u

const char *td_chips_vendor(uint32_t vendor_id)
{
    for (size_t i = 0; i < TD_COUNT(vendors); i++)
        if (vendors[i].id == vendor_id)
            return vendors[i].name;
    return "unknown";
}

void td_chips_write_pci(uint32_t domain, uint32_t bus, uint32_t device, uint32_t function,
                        char out[TD_PCI_BYTES])
{
    out[0] = 0;
    if (domain | bus | device | function)
        snprintf(out, TD_PCI_BYTES, "%04x:%02x:%02x.%x", domain, bus & 0xff, device & 0x1f,
                 function & 7);
}

void td_chips_write_uuid(const uint8_t bytes[16], char out[TD_UUID_BYTES])
{
    static const uint8_t none[16] = {0};
    out[0] = 0;
    for (uint32_t i = 0; i < 16 && memcmp(bytes, none, sizeof none) != 0; i++)
        snprintf(out + strlen(out), TD_UUID_BYTES - strlen(out), "%s%02x",
                 i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", bytes[i]);
}

/* "" for one without a short name. */
static const char *driver_name(const td_device_info *d)
{
    for (size_t i = 0; i < TD_COUNT(drivers); i++)
        if (drivers[i].id == d->driver_id)
            return drivers[i].name;
    return "";
}

static uint32_t rank_of(const td_device_info *d)
{
    for (size_t i = 0; i < TD_COUNT(drivers); i++)
        if (drivers[i].id == d->driver_id)
            return drivers[i].rank;
    return RANK_OTHERS;
}

static bool is_vulkan(const td_device_info *d) { return !strncmp(d->spec, "vulkan:", 7); }

bool td_chips_is_one(const td_device_info *a, const td_device_info *b)
{
    if (!strcmp(a->spec, b->spec))
        return true;
    if (!is_vulkan(a) || !is_vulkan(b) || a->kind == TD_DEVICE_SOFTWARE ||
        b->kind == TD_DEVICE_SOFTWARE)
        return false;
    bool is_one_uuid = a->uuid[0] && !strcmp(a->uuid, b->uuid);
    /* One driver tells parts of a card apart that share its address. */
    bool are_parts = a->driver_id == b->driver_id && a->uuid[0] && b->uuid[0] && !is_one_uuid;
    if (a->pci[0] && b->pci[0])
        return !strcmp(a->pci, b->pci) && !are_parts;
    return is_one_uuid && a->vendor_id == b->vendor_id;
}

/* Of two devices of one chip, by their places in the list. */
static bool is_preferred(const td_device_info *infos, uint32_t a, uint32_t b)
{
    if (infos[a].is_usable != infos[b].is_usable)
        return infos[a].is_usable;
    uint32_t rank_a = rank_of(&infos[a]), rank_b = rank_of(&infos[b]);
    return rank_a != rank_b ? rank_a < rank_b : a < b;
}

/* -- SPECs ------------------------------------------------------------------------------------- */

typedef struct { /* what a SPEC asks for; "" and 0: it does not say */
    const char *index, *name;
    uint32_t vendor_id;
    char pci[TD_PCI_BYTES], uuid[TD_UUID_BYTES];
    const char *driver; /* NULL: any */
} wish;

/* 1..n_max hexadecimal digits. */
static bool read_hex(const char **at, uint32_t n_max, uint32_t max, uint32_t *out)
{
    uint32_t n = 0;
    for (*out = 0; n < n_max; n++, (*at)++) {
        const char *digit = **at ? strchr("0123456789abcdefABCDEF", **at) : NULL;
        if (!digit)
            break;
        uint32_t value = (uint32_t)(digit - "0123456789abcdefABCDEF");
        *out = *out << 4 | (value < 16 ? value : value - 6);
    }
    return n > 0 && *out <= max;
}

static bool skip(const char **at, char c)
{
    bool is_there = **at == c;
    *at += is_there;
    return is_there;
}

/* [DOMAIN:]BUS:DEVICE.FUNCTION; *end is behind it. */
static bool read_pci(const char *text, wish *w, const char **end)
{
    uint32_t domain = 0, bus, device, function;
    *end = text;
    if (!read_hex(end, 8, UINT32_MAX, &bus) || !skip(end, ':') || !read_hex(end, 4, 0xff, &device))
        return false;
    if (**end == ':') {
        domain = bus;
        bus = device;
        ++*end;
        if (!read_hex(end, 2, 0x1f, &device))
            return false;
    }
    if (bus > 0xff || device > 0x1f || !skip(end, '.') || !read_hex(end, 1, 7, &function))
        return false;
    td_chips_write_pci(domain, bus, device, function, w->pci);
    return true;
}

/* 16 bytes in hexadecimal, dashes where one likes, "GPU-" before it as NVIDIA's tools write it. */
static bool read_uuid(const char *text, wish *w, const char **end)
{
    uint8_t bytes[16];
    uint32_t n_digits = 0, value;
    *end = strncasecmp(text, "GPU-", 4) ? text : text + 4;
    for (; n_digits < 32; n_digits++) {
        *end += **end == '-' && n_digits;
        if (!read_hex(end, 1, 15, &value))
            return false;
        bytes[n_digits / 2] =
            (uint8_t)(n_digits % 2 ? (uint32_t)bytes[n_digits / 2] << 4 | value : value);
    }
    td_chips_write_uuid(bytes, w->uuid);
    return true;
}

/* A vendor's name with nothing or a ':' behind it. */
static bool read_vendor(const char *text, wish *w, const char **end)
{
    size_t n = strcspn(text, ":");
    for (size_t i = 0; i < TD_COUNT(vendors); i++)
        if (strlen(vendors[i].name) == n && !strncasecmp(text, vendors[i].name, n)) {
            w->vendor_id = vendors[i].id;
            *end = text + n;
            return true;
        }
    return false;
}

static bool malformed(const char *which, const char *needs, td_err *err)
{
    return td_err_set(err, TD_E_USAGE, "device \"vulkan:%.64s\": %s", which, needs);
}

static bool read_wish(const char *which, wish *w, td_err *err)
{
    *w = (wish){0};
    const char *end = NULL;
    if (!which[strspn(which, "0123456789")]) {
        for (w->index = which; w->index[0] == '0' && w->index[1];)
            w->index++;
        return true;
    }
    if (!strncasecmp(which, "pci:", 4) && !read_pci(which + 4, w, &end))
        return malformed(which, "an address is needed, such as pci:0000:c1:00.0", err);
    if (!strncasecmp(which, "uuid:", 5) && !read_uuid(which + 5, w, &end))
        return malformed(which, "a UUID of 32 hexadecimal digits is needed", err);
    if (!end && !read_vendor(which, w, &end)) {
        w->name = which;
        return true;
    }
    if (*end && (*end != ':' || !end[1]))
        return malformed(which, "behind it there may be :DRIVER, such as :radv, and no more", err);
    w->driver = *end ? end + 1 : NULL;
    return true;
}

static bool is_wanted(const td_device_info *d, const wish *w)
{
    if (!is_vulkan(d) || (w->index && strcmp(d->spec + 7, w->index)) ||
        (w->name && !strcasestr(d->name, w->name)) ||
        (w->vendor_id && d->vendor_id != w->vendor_id) || (w->pci[0] && strcmp(d->pci, w->pci)) ||
        (w->uuid[0] && strcmp(d->uuid, w->uuid)))
        return false;
    return !w->driver || !strcasecmp(driver_name(d), w->driver) || strcasestr(d->driver, w->driver);
}

/* Leaves of the chips that are wanted one device each, and what cannot be used out where something
 * can; returns how many are left. */
static uint32_t narrow(const td_device_info *infos, uint32_t n, bool *wanted)
{
    uint32_t n_left = 0;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n && wanted[i]; k++)
            if (wanted[k] && i != k &&
                ((infos[k].is_usable && !infos[i].is_usable) ||
                 (td_chips_is_one(&infos[i], &infos[k]) && is_preferred(infos, k, i))))
                wanted[i] = false;
    for (uint32_t i = 0; i < n; i++)
        n_left += wanted[i];
    return n_left;
}

bool td_chips_find(const td_device_info *infos, uint32_t n, const char *which, uint32_t *index,
                   td_err *err)
{
    wish w;
    bool wanted[TD_DEVICES_MAX] = {false};
    n = td_min_u32(n, TD_DEVICES_MAX);
    if (!read_wish(which, &w, err))
        return false;
    for (uint32_t i = 0; i < n; i++)
        wanted[i] = is_wanted(&infos[i], &w);
    uint32_t n_wanted = narrow(infos, n, wanted), n_listed = 0;
    for (uint32_t i = 0; i < n; i++)
        if (wanted[i])
            *index = i;
    if (n_wanted == 1)
        return true;
    char list[LIST_BYTES] = "";
    for (uint32_t i = 0; i < n; i++) {
        size_t used = strlen(list);
        const char *spec = n_wanted ? infos[i].id : infos[i].spec;
        if (is_vulkan(&infos[i]) && (!n_wanted || wanted[i]))
            snprintf(list + used, sizeof list - used, "%s%s (%.80s)", n_listed++ ? ", " : "", spec,
                     infos[i].name);
    }
    return td_err_set(err, TD_E_USAGE, "device \"vulkan:%.64s\" %s; there %s: %s", which,
                      n_wanted ? "is ambiguous" : "does not exist", n_listed == 1 ? "is" : "are",
                      n_listed ? list : "no Vulkan devices");
}

/* -- lists ------------------------------------------------------------------------------------- */

/* The SPEC that means this device wherever it stands in the list. */
static void write_id(td_device_info *infos, uint32_t n, uint32_t i)
{
    td_device_info *d = &infos[i];
    uint32_t found = n;
    const char *driver = d->same_as[0] ? driver_name(d) : "", *colon = *driver ? ":" : "";
    snprintf(d->id, sizeof d->id, "%s", d->spec);
    if (!is_vulkan(d) || d->kind == TD_DEVICE_SOFTWARE || (!d->pci[0] && !d->uuid[0]))
        return;
    snprintf(d->id, sizeof d->id, "vulkan:%s:%s%s%s", d->pci[0] ? "pci" : "uuid",
             d->pci[0] ? d->pci : d->uuid, colon, driver);
    if (!td_chips_find(infos, n, d->id + 7, &found, NULL) || found != i)
        snprintf(d->id, sizeof d->id, "%s", d->spec);
}

void td_chips_mark(td_device_info *infos, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t best = i;
        for (uint32_t k = 0; k < n; k++)
            if (td_chips_is_one(&infos[best], &infos[k]) && is_preferred(infos, k, best))
                best = k;
        snprintf(infos[i].same_as, sizeof infos[i].same_as, "%s",
                 best != i ? infos[best].spec : "");
    }
    for (uint32_t i = 0; i < n; i++)
        write_id(infos, n, i);
}

uint32_t td_chips_default(const td_device_info *infos, uint32_t n, uint32_t *indices)
{
    static const td_device_kind order[] = {TD_DEVICE_DISCRETE, TD_DEVICE_INTEGRATED,
                                           TD_DEVICE_VIRTUAL};
    uint32_t n_chosen = 0;
    for (size_t k = 0; k < TD_COUNT(order); k++)
        for (uint32_t i = 0; i < n; i++)
            if (infos[i].is_usable && infos[i].kind == order[k] && !infos[i].same_as[0])
                indices[n_chosen++] = i;
    return n_chosen;
}

uint32_t td_chips_idle(const td_device_info *infos, uint32_t n, const td_device_info *used,
                       uint32_t n_used)
{
    uint32_t indices[TD_DEVICES_MAX];
    n = td_min_u32(n, TD_DEVICES_MAX);
    uint32_t n_chosen = td_chips_default(infos, n, indices);
    for (uint32_t i = 0; i < n_chosen; i++) {
        bool is_used = false;
        for (uint32_t k = 0; k < n_used; k++)
            is_used |= td_chips_is_one(&infos[indices[i]], &used[k]);
        if (!is_used)
            return indices[i];
    }
    return n;
}
