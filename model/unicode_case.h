/* Letters' cases and what of Unicode can be shown, as scripting languages define them: for the
 * chat templates, whose texts are Python's. One code point at a time, with the three letters whose
 * upper case is longer handled by the caller. No state, no errors; any thread. */
#ifndef TD_MODEL_UNICODE_CASE_H
#define TD_MODEL_UNICODE_CASE_H

#include <stdbool.h>
#include <stdint.h>

uint32_t td_unicode_upper(uint32_t codepoint);
uint32_t td_unicode_lower(uint32_t codepoint);
uint32_t td_unicode_title(uint32_t codepoint);
bool td_unicode_is_upper(uint32_t codepoint); /* of its category: Lu */
bool td_unicode_is_lower(uint32_t codepoint); /* Ll and the letters that count as lower */
bool td_unicode_is_cased(uint32_t codepoint); /* has an upper, a lower or a title form */
bool td_unicode_is_decimal(uint32_t codepoint);
/* No control, format, private, unassigned or separator character but the space. */
bool td_unicode_is_printable(uint32_t codepoint);
/* White space of a text: bidirectional classes WS, B and S too, so U+001C to U+001F. */
bool td_unicode_is_strippable(uint32_t codepoint);

#endif
