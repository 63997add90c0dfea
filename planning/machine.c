#include "planning/machine.h"

#include "base/check.h"
#include "base/json.h"
#include "base/mem.h"
#include "kernels/chips.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define MIB_MAX    (64ll << 20) /* 64 TiB */
#define NAME_BYTES 255

static const char *const kinds[] = {"discrete", "integrated", "virtual", "software", NULL};
static const td_device_kind kind_values[] = {TD_DEVICE_DISCRETE, TD_DEVICE_INTEGRATED,
                                             TD_DEVICE_VIRTUAL, TD_DEVICE_SOFTWARE};
static const char *const flag_names[] = {"device_local", "host_visible", "host_coherent",
                                         "host_cached",  "lazy",         "protected",
                                         "coherent_amd", "uncached_amd"};

#define MIB(name, is_needed)                                                                       \
    {                                                                                              \
        .key = name, .type = TD_JSON_INT, .required = is_needed, .min = 0, .max = MIB_MAX          \
    }
#define BYTES(name)                                                                                \
    {                                                                                              \
        .key = name, .type = TD_JSON_INT, .min = 1 << 20, .max = INT64_MAX                         \
    }
#define TEXT(name, is_needed, most)                                                                \
    {                                                                                              \
        .key = name, .type = TD_JSON_STRING, .required = is_needed, .min = 1, .max = most          \
    }
#define SPEED(name)                                                                                \
    {                                                                                              \
        .key = name, .type = TD_JSON_FLOAT, .required = true, .f_min = 0.1, .f_max = 1e5           \
    }

static const td_json_field host_fields[] = {
    TEXT("cpu", true, NAME_BYTES),
    MIB("total_mib", true),
    MIB("available_mib", true),
    {.key = "threads", .type = TD_JSON_INT, .required = true, .min = 1, .max = 1024},
    SPEED("bandwidth_gb_s"),
    SPEED("tflops"),
    {.key = "expect", .type = TD_JSON_OBJECT}};
static const td_json_field heap_fields[] = {
    MIB("mib", true),
    MIB("budget_mib", false),
    MIB("used_mib", false),
    {.key = "device_local", .type = TD_JSON_BOOL, .required = true}};
static const td_json_field type_fields[] = {
    {.key = "heap", .type = TD_JSON_INT, .required = true, .min = 0, .max = TD_HEAPS_MAX - 1},
    {.key = "flags",
     .type = TD_JSON_STRING_LIST,
     .required = true,
     .min = 1,
     .max = 32,
     .n_max = TD_COUNT(flag_names)}};
static const td_json_field amdgpu_fields[] = {
    MIB("vram_total_mib", true), MIB("vram_used_mib", true), MIB("gtt_total_mib", true),
    MIB("gtt_used_mib", true)};
static const td_json_field expect_device_fields[] = {
    {.key = "usable_mib", .type = TD_JSON_FLOAT, .required = true, .f_max = 1e9},
    TEXT("why", true, TD_MACHINE_WHY_MAX - 1)};
static const td_json_field device_fields[] = {
    TEXT("name", true, NAME_BYTES),
    {.key = "kind", .type = TD_JSON_ENUM, .required = true, .names = kinds},
    {.key = "vendor_id", .type = TD_JSON_INT, .required = true, .max = UINT32_MAX},
    {.key = "driver_id", .type = TD_JSON_INT, .required = true, .max = UINT32_MAX},
    TEXT("driver", true, NAME_BYTES),
    TEXT("pci", false, TD_PCI_BYTES - 1),
    TEXT("uuid", false, TD_UUID_BYTES - 1),
    TEXT("why_not", false, 127),
    {.key = "heaps", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = TD_HEAPS_MAX},
    {.key = "types", .type = TD_JSON_OBJECT_LIST, .n_max = TD_MEMORY_TYPES_MAX},
    {.key = "amdgpu", .type = TD_JSON_OBJECT},
    {.key = "subgroup", .type = TD_JSON_INT, .min = 1, .max = 128},
    BYTES("max_storage_buffer_range"),
    BYTES("max_buffer_size"),
    BYTES("max_memory_allocation_size"),
    SPEED("bandwidth_gb_s"),
    SPEED("tflops"),
    {.key = "expect", .type = TD_JSON_OBJECT}};
static const td_json_field expect_fields[] = {
    TEXT("model", true, TD_HARDWARE_NAME_MAX - 1),
    {.key = "fits", .type = TD_JSON_BOOL, .required = true},
    {.key = "missing_mib", .type = TD_JSON_FLOAT, .f_max = 1e9},
    {.key = "layers",
     .type = TD_JSON_INT_LIST,
     .max = TD_LAYERS_MAX,
     .n_max = TD_SPEED_DEVICES_MAX},
    TEXT("draft_device", false, TD_HARDWARE_NAME_MAX - 1),
    TEXT("why", true, TD_MACHINE_WHY_MAX - 1)};
static const td_json_field root_fields[] = {
    TEXT("about", true, TD_HARDWARE_ABOUT_MAX - 1),
    TEXT("source", false, 2048),
    {.key = "host", .type = TD_JSON_OBJECT, .required = true},
    {.key = "devices", .type = TD_JSON_OBJECT_LIST, .required = true, .n_max = TD_DEVICES_MAX - 1},
    {.key = "expect", .type = TD_JSON_OBJECT_LIST, .n_max = TD_MACHINE_EXPECTS_MAX}};

#define SCHEMA(name)                                                                               \
    static const td_json_schema name##_schema = {name##_fields, TD_COUNT(name##_fields), false}
SCHEMA(host);
SCHEMA(heap);
SCHEMA(type);
SCHEMA(amdgpu);
SCHEMA(expect_device);
SCHEMA(device);
SCHEMA(expect);
SCHEMA(root);

static uint64_t mib_of(const td_json_object *o, const char *key)
{
    return (uint64_t)td_json_get_int(o, key, 0) << 20;
}

static bool read_expect_device(const td_json_object *o, td_machine_expect_device *out, td_err *err)
{
    td_json_object e;
    if (!td_json_has(o, "expect"))
        return true;
    if (!td_json_read_member(o, "expect", &expect_device_schema, &e, err))
        return false;
    out->has_usable = true;
    out->usable_mib = td_json_get_double(&e, "usable_mib", 0);
    snprintf(out->why, sizeof out->why, "%s", td_json_get_string(&e, "why", ""));
    return true;
}

static bool read_host(const td_json_object *root, td_machine *m, td_err *err)
{
    td_json_object o;
    td_device_info *info = &m->devices[0];
    if (!td_json_read_member(root, "host", &host_schema, &o, err))
        return false;
    *info =
        (td_device_info){.spec = "host", .id = "host", .kind = TD_DEVICE_HOST, .is_usable = true};
    snprintf(info->name, sizeof info->name, "%s", td_json_get_string(&o, "cpu", ""));
    info->n_threads = (uint32_t)td_json_get_int(&o, "threads", 1);
    td_memory_facts *f = &info->memory;
    f->system_bytes = mib_of(&o, "total_mib");
    f->available_bytes = mib_of(&o, "available_mib");
    if (!f->available_bytes || f->available_bytes > f->system_bytes)
        return td_json_fail(&o, "available_mib", err, "%llu of %llu; allowed: 1..total_mib",
                            (unsigned long long)(f->available_bytes >> 20),
                            (unsigned long long)(f->system_bytes >> 20));
    f->n_heaps = 1;
    f->heaps[0].n_bytes = f->system_bytes;
    f->heaps[0].is_device_local = true;
    info->max_buffer_bytes = f->system_bytes;
    m->bytes_per_s[0] = 1e9 * td_json_get_double(&o, "bandwidth_gb_s", 0);
    m->flops_per_s[0] = 1e12 * td_json_get_double(&o, "tflops", 0);
    m->n_devices = 1;
    return read_expect_device(&o, &m->expect_devices[0], err);
}

static bool read_heaps(const td_json_object *o, td_memory_facts *f, td_err *err)
{
    td_json_object e;
    for (; f->n_heaps < td_json_count(o, "heaps"); f->n_heaps++) {
        uint32_t i = f->n_heaps;
        if (!td_json_read_element(o, "heaps", i, &heap_schema, &e, err))
            return false;
        f->heaps[i].n_bytes = mib_of(&e, "mib");
        f->heaps[i].budget_bytes = mib_of(&e, "budget_mib");
        f->heaps[i].used_bytes = mib_of(&e, "used_mib");
        f->heaps[i].is_device_local = td_json_get_bool(&e, "device_local", false);
    }
    return true;
}

static bool read_types(const td_json_object *o, td_memory_facts *f, td_err *err)
{
    td_json_object e;
    for (; f->n_types < td_json_count(o, "types"); f->n_types++) {
        uint32_t i = f->n_types;
        if (!td_json_read_element(o, "types", i, &type_schema, &e, err))
            return false;
        f->types[i].heap = (uint32_t)td_json_get_int(&e, "heap", 0);
        if (f->types[i].heap >= f->n_heaps)
            return td_json_fail(&e, "heap", err, "%u; there are %u heaps", f->types[i].heap,
                                f->n_heaps);
        for (size_t k = 0; k < td_json_count(&e, "flags"); k++) {
            const char *name = td_json_get_string_at(&e, "flags", k);
            size_t bit = 0;
            while (bit < TD_COUNT(flag_names) && strcmp(flag_names[bit], name))
                bit++;
            if (bit == TD_COUNT(flag_names))
                return td_json_fail(&e, "flags", err,
                                    "\"%.32s\"; allowed: device_local, host_visible, "
                                    "host_coherent, host_cached, lazy, protected, coherent_amd, "
                                    "uncached_amd",
                                    name);
            f->types[i].flags |= 1u << bit;
        }
    }
    return true;
}

static bool read_amdgpu(const td_json_object *o, td_memory_facts *f, td_err *err)
{
    td_json_object e;
    if (!td_json_has(o, "amdgpu"))
        return true;
    if (!td_json_read_member(o, "amdgpu", &amdgpu_schema, &e, err))
        return false;
    f->has_amdgpu = true;
    f->vram_bytes = mib_of(&e, "vram_total_mib");
    f->vram_used_bytes = mib_of(&e, "vram_used_mib");
    f->gtt_bytes = mib_of(&e, "gtt_total_mib");
    f->gtt_used_bytes = mib_of(&e, "gtt_used_mib");
    return true;
}

/* "0000:c1:00.0" and "0123abcd-....": what others compare must be written one way. */
static bool read_identity(const td_json_object *o, td_device_info *info, td_err *err)
{
    unsigned domain, bus, device, function;
    char more;
    const char *pci = td_json_get_string(o, "pci", ""), *uuid = td_json_get_string(o, "uuid", "");
    if (*pci && (sscanf(pci, "%8x:%2x:%2x.%1x%c", &domain, &bus, &device, &function, &more) != 4))
        return td_json_fail(o, "pci", err, "\"%s\"; an address such as \"0000:c1:00.0\"", pci);
    if (*pci)
        td_chips_write_pci(domain, bus, device, function, info->pci);
    for (size_t i = 0; *uuid && i < TD_UUID_BYTES - 1; i++) {
        bool is_dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (is_dash ? uuid[i] != '-' : !isxdigit((unsigned char)uuid[i]))
            return td_json_fail(o, "uuid", err,
                                "\"%s\"; 32 hexadecimal digits as 8-4-4-4-12 are needed", uuid);
        info->uuid[i] = (char)tolower((unsigned char)uuid[i]);
    }
    return true;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static bool read_device(const td_json_object *o, td_machine *m, td_err *err)
{
    uint32_t index = m->n_devices;
    td_device_info *info = &m->devices[index];
    const char *why_not = td_json_get_string(o, "why_not", "");
    *info = (td_device_info){.kind = kind_values[td_json_get_enum(o, "kind", 0)],
                             .vendor_id = (uint32_t)td_json_get_int(o, "vendor_id", 0),
                             .driver_id = (uint32_t)td_json_get_int(o, "driver_id", 0),
                             .subgroup_size = (uint32_t)td_json_get_int(o, "subgroup", 32),
                             .is_usable = !*why_not};
    snprintf(info->spec, sizeof info->spec, "vulkan:%u", index - 1);
    snprintf(info->name, sizeof info->name, "%s", td_json_get_string(o, "name", ""));
    snprintf(info->vendor, sizeof info->vendor, "%s", td_chips_vendor(info->vendor_id));
    snprintf(info->driver, sizeof info->driver, "%s", td_json_get_string(o, "driver", ""));
    snprintf(info->why_not, sizeof info->why_not, "%s", why_not);
    uint64_t range = (uint64_t)td_json_get_int(o, "max_storage_buffer_range", UINT32_MAX) & ~15ull;
    info->max_buffer_bytes =
        least(least(range, (uint64_t)td_json_get_int(o, "max_buffer_size", INT64_MAX)),
              (uint64_t)td_json_get_int(o, "max_memory_allocation_size", INT64_MAX));
    m->bytes_per_s[index] = 1e9 * td_json_get_double(o, "bandwidth_gb_s", 0);
    m->flops_per_s[index] = 1e12 * td_json_get_double(o, "tflops", 0);
    m->n_devices++;
    td_memory_facts *f = &info->memory;
    f->system_bytes = m->devices[0].memory.system_bytes;
    f->available_bytes = m->devices[0].memory.available_bytes;
    return read_identity(o, info, err) && read_heaps(o, f, err) && read_types(o, f, err) &&
           read_amdgpu(o, f, err) && read_expect_device(o, &m->expect_devices[index], err);
}

static bool read_expect(const td_json_object *o, td_machine_expect *e, td_err *err)
{
    snprintf(e->model, sizeof e->model, "%s", td_json_get_string(o, "model", ""));
    snprintf(e->why, sizeof e->why, "%s", td_json_get_string(o, "why", ""));
    snprintf(e->draft_device, sizeof e->draft_device, "%s",
             td_json_get_string(o, "draft_device", ""));
    e->fits = td_json_get_bool(o, "fits", false);
    e->missing_mib = td_json_get_double(o, "missing_mib", 0);
    e->n_layers = (uint32_t)td_json_count(o, "layers");
    for (uint32_t i = 0; i < e->n_layers; i++)
        e->layers[i] = (uint32_t)td_json_get_int_at(o, "layers", i);
    return e->fits || !e->n_layers ||
           td_json_fail(o, "layers", err, "are given of a model that does not fit");
}

static bool read_machine(const td_json_object *root, td_machine *m, td_err *err)
{
    td_json_object o;
    snprintf(m->about, sizeof m->about, "%s", td_json_get_string(root, "about", ""));
    if (!read_host(root, m, err))
        return false;
    for (size_t i = 0; i < td_json_count(root, "devices"); i++)
        if (!td_json_read_element(root, "devices", i, &device_schema, &o, err) ||
            !read_device(&o, m, err))
            return false;
    for (; m->n_expects < td_json_count(root, "expect"); m->n_expects++)
        if (!td_json_read_element(root, "expect", m->n_expects, &expect_schema, &o, err) ||
            !read_expect(&o, &m->expects[m->n_expects], err))
            return false;
    for (uint32_t i = 0; i < m->n_devices; i++)
        td_device_weigh(&m->devices[i]);
    td_chips_mark(m->devices, m->n_devices);
    return true;
}

td_machine *td_machine_open(const char *path, td_err *err)
{
    td_machine *m = td_alloc(1, sizeof *m, err);
    td_json *doc = m ? td_json_read_file(path, err) : NULL;
    td_json_object root;
    if (!doc || !td_json_read_root(doc, &root_schema, &root, err) || !read_machine(&root, m, err))
        td_machine_close(&m);
    td_json_destroy(&doc);
    return m;
}

void td_machine_close(td_machine **machine)
{
    td_free(*machine);
    *machine = NULL;
}
