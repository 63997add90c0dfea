/* The header and the fields that both wires are made of. */
#include "transport/wire_parts.h"
#include "base/crc32c.h"

#include <inttypes.h>
#include <string.h>

#define CRC_OFFSET 28u

bool td_wire_check_u32(const char *field, uint32_t value, uint32_t min, uint32_t max, td_err *err)
{
    if (value < min || value > max)
        return td_err_set(err, TD_E_DATA, "%s is %" PRIu32 "; allowed: %" PRIu32 "..%" PRIu32,
                          field, value, min, max);
    return true;
}

/* The comparison is false for a NaN. */
bool td_wire_check_f32(const char *field, float value, float min, float max, td_err *err)
{
    if (!(value >= min && value <= max))
        return td_err_set(err, TD_E_DATA, "%s is %g; allowed: %g..%g", field, (double)value,
                          (double)min, (double)max);
    return true;
}

bool td_wire_check_text(const char *field, const char *text, size_t max, td_err *err)
{
    size_t n = strnlen(text, max + 1);
    if (n > max)
        return td_err_set(err, TD_E_DATA, "%s is longer than %zu bytes", field, max);
    for (size_t i = 0; i < n; i++)
        if (text[i] < 0x20 || text[i] > 0x7e)
            return td_err_set(err, TD_E_DATA,
                              "%s: byte %zu is 0x%02x; allowed: printable ASCII 0x20..0x7e", field,
                              i, (unsigned)(uint8_t)text[i]);
    return true;
}

void td_wire_write_text(td_cursor_out *c, const char *text)
{
    size_t n = strlen(text);
    td_cursor_write_u16(c, (uint16_t)n);
    td_cursor_write_bytes(c, text, n);
}

bool td_wire_read_text(td_cursor *c, const char *field, char *text, size_t max)
{
    uint16_t n;
    if (!td_cursor_read_u16(c, &n))
        return false;
    if (n > max)
        return td_cursor_fail(c, "%s is %u bytes long; allowed: 0..%zu", field, (unsigned)n, max);
    if (!td_cursor_read_bytes(c, text, n))
        return false;
    text[n] = 0;
    if (strlen(text) != n)
        return td_cursor_fail(c, "%s holds a zero byte; allowed: printable ASCII", field);
    return true;
}

/* The checksum of a whole message, its own field taken as zero. */
static uint32_t message_crc(const uint8_t *bytes, size_t n_bytes)
{
    static const uint8_t zero[4];
    uint32_t crc = td_crc32c(0, bytes, CRC_OFFSET);
    crc = td_crc32c(crc, zero, sizeof zero);
    return td_crc32c(crc, bytes + TD_WIRE_HEADER_BYTES, n_bytes - TD_WIRE_HEADER_BYTES);
}

void td_wire_begin(td_cursor_out *c)
{
    static const uint8_t zero[TD_WIRE_HEADER_BYTES];
    td_cursor_write_bytes(c, zero, sizeof zero);
}

bool td_wire_end(td_cursor_out *c, const td_wire_head *head, size_t *n_bytes, td_err *err)
{
    if (c->failed)
        return false;
    td_cursor_out h = td_cursor_out_begin("header", c->bytes, TD_WIRE_HEADER_BYTES, err);
    td_cursor_write_u32(&h, TD_WIRE_MAGIC);
    td_cursor_write_u16(&h, TD_WIRE_VERSION);
    td_cursor_write_u8(&h, head->type);
    td_cursor_write_u8(&h, 0); /* flags */
    td_cursor_write_u64(&h, head->session);
    td_cursor_write_u64(&h, head->seq);
    td_cursor_write_u32(&h, (uint32_t)(c->pos - TD_WIRE_HEADER_BYTES));
    td_cursor_write_u32(&h, message_crc(c->bytes, c->pos));
    *n_bytes = c->pos;
    return true;
}

bool td_wire_read_head(td_cursor *c, const td_wire_types *types, td_wire_head *out)
{
    uint32_t magic, length, crc;
    uint16_t version;
    uint8_t flags;
    if (!td_cursor_read_u32(c, &magic) || !td_cursor_read_u16(c, &version) ||
        !td_cursor_read_u8(c, &out->type) || !td_cursor_read_u8(c, &flags) ||
        !td_cursor_read_u64(c, &out->session) || !td_cursor_read_u64(c, &out->seq) ||
        !td_cursor_read_u32(c, &length) || !td_cursor_read_u32(c, &crc))
        return false;
    if (magic != TD_WIRE_MAGIC)
        return td_cursor_fail(c, "magic is 0x%08" PRIx32 "; allowed: 0x%08x", magic, TD_WIRE_MAGIC);
    if (version != TD_WIRE_VERSION)
        return td_cursor_fail(c, "version is %u; allowed: %u", (unsigned)version, TD_WIRE_VERSION);
    if (out->type < types->first || out->type > types->last)
        return td_cursor_fail(c, "type is %u; allowed: %u..%u", out->type, types->first,
                              types->last);
    if (flags != 0)
        return td_cursor_fail(c, "flags are 0x%02x; allowed: 0", (unsigned)flags);
    size_t cap = types->max_bytes(out->type);
    if (c->n_bytes > cap)
        return td_cursor_fail(c, "%s of %" PRIu64 " bytes; allowed: at most %zu",
                              types->name(out->type), c->n_bytes, cap);
    if (length != td_cursor_left(c))
        return td_cursor_fail(c, "length is %" PRIu32 "; allowed: %" PRIu64 ", what follows it",
                              length, td_cursor_left(c));
    uint32_t seen = message_crc(c->bytes, (size_t)c->n_bytes);
    if (crc != seen)
        return td_cursor_fail(c, "crc32c is 0x%08" PRIx32 "; the bytes give 0x%08" PRIx32, crc,
                              seen);
    return true;
}
