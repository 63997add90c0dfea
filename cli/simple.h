/* What several commands read the same way. */
#ifndef TD_CLI_SIMPLE_H
#define TD_CLI_SIMPLE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Token ids from "1,2,3" or "@FILE" (the same, or one a line, or a JSON list). *ids by td_alloc. */
bool td_read_token_ids(const char *text, uint32_t n_vocab, uint32_t **ids, size_t *n_ids,
                       td_err *err);

/* Numbers from "1,2,4" into out[n_max], each in min..max and given once; at least one. `flag` is
 * for messages. */
bool td_read_numbers(const char *flag, const char *text, uint32_t min, uint32_t max, uint32_t *out,
                     uint32_t n_max, uint32_t *n, td_err *err);

#endif
