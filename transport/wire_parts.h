/* What the two wires share, that of drafts (wire.c) and that of stages (stage_wire.c): the header
 * of 32 bytes, checks of fields, texts. For the files of the wires alone. Errors as wire.h. */
#ifndef TD_TRANSPORT_WIRE_PARTS_H
#define TD_TRANSPORT_WIRE_PARTS_H

#include "base/cursor.h"
#include "transport/wire.h"

typedef struct {
    uint8_t type;
    uint64_t session, seq;
} td_wire_head;

/* The types that a wire has, first..last. */
typedef struct {
    uint8_t first, last;
    const char *(*name)(uint8_t type);
    size_t (*max_bytes)(uint8_t type); /* of a message with its header */
} td_wire_types;

/* The framing: everything that must hold before the payload is looked at. The cursor holds the
 * whole message and stands behind the header then. */
bool td_wire_read_head(td_cursor *c, const td_wire_types *types, td_wire_head *out);

/* Leaves room for the header, which end fills in once the payload is known. end is false when the
 * room was too small. */
void td_wire_begin(td_cursor_out *c);
bool td_wire_end(td_cursor_out *c, const td_wire_head *head, size_t *n_bytes, td_err *err);

bool td_wire_check_u32(const char *field, uint32_t value, uint32_t min, uint32_t max, td_err *err);
bool td_wire_check_f32(const char *field, float value, float min, float max, td_err *err);
bool td_wire_check_text(const char *field, const char *text, size_t max, td_err *err);

/* A length u16 and so many bytes. The writer's failures are sticky (cursor.h); text[max + 1]. */
void td_wire_write_text(td_cursor_out *c, const char *text);
bool td_wire_read_text(td_cursor *c, const char *field, char *text, size_t max);

#endif
