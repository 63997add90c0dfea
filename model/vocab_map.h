/* The tokens that two vocabularies share, so that a draft can work for a target whose ids mean
 * something else. Tokens are twins when they stand for the same bytes and both or neither are
 * control tokens; begin, end and end of turn are also twins by what they are for.
 *
 *     td_vocab_map *map = td_vocab_map_create(target, draft, err);
 *     td_vocab_map_to_draft(map, target_id, &ids, &n);   // feeding: one id, or pieces of its bytes
 *     td_vocab_map_to_target(map, draft_id);             // proposing: TD_NO_TOKEN ends the draft
 *
 * A draft only proposes, so nothing here can change a text (law 1).
 * Immutable after create, owns its tables, borrows nothing; any thread. */
#ifndef TD_MODEL_VOCAB_MAP_H
#define TD_MODEL_VOCAB_MAP_H

#include "model/tokenizer.h"

typedef struct td_vocab_map td_vocab_map;

typedef struct {
    uint32_t n_target, n_draft; /* ids */
    uint32_t n_text;            /* of the target: tokens that stand for anything */
    uint32_t n_twins;           /* of these, with a twin in the draft */
    /* Nearly all twins have one id on both sides. Then a token without one is fed as one piece, so
     * that positions agree too and both sides draw from the same noise. */
    bool is_aligned;
} td_vocab_map_info;

/* Are the tokens below the smaller size the same? Then no map is needed: what one has more is
 * padding. */
bool td_vocab_is_same(const td_tokenizer *a, const td_tokenizer *b);

/* TD_E_UNAVAILABLE, with counts and the first difference, when fewer than two thirds of the
 * target's tokens have a twin. */
td_vocab_map *td_vocab_map_create(const td_tokenizer *target, const td_tokenizer *draft,
                                  td_err *err);
void td_vocab_map_destroy(td_vocab_map **map);
td_vocab_map_info td_vocab_map_get_info(const td_vocab_map *map);

/* What the draft is fed for a target's token (id < n_target); may be nothing. At most
 * TD_TOKEN_MAX ids, borrowed. */
void td_vocab_map_to_draft(const td_vocab_map *map, uint32_t id, const uint32_t **ids,
                           uint32_t *n_ids);
/* The target's twin of a draft's token (id < n_draft), or TD_NO_TOKEN. */
uint32_t td_vocab_map_to_target(const td_vocab_map *map, uint32_t id);
const uint32_t *td_vocab_map_targets(const td_vocab_map *map); /* of all: [n_draft], borrowed */

#endif
