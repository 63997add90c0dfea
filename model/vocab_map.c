/* Building the map: one side's tokens go into a table by their bytes, the other side's are looked
 * up in it; then the other way round, because a vocabulary may have several tokens of the same
 * bytes (a letter and the byte token of it) and each side prefers its own. */
#include "model/vocab_map.h"

#include "base/check.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/text.h"
#include "base/utf8.h"
#include "model/tokenizer_private.h"

#include <string.h>

/* A vocabulary made to collide would turn probing into a scan; what lies further off has no twin.
 * No honest file comes near the bound. */
#define PROBES_MAX 1024u

struct td_vocab_map {
    td_vocab_map_info info;
    uint32_t *to_target; /* [n_draft] */
    uint32_t *firsts;    /* [n_target + 1]: pieces of token i are pieces[firsts[i]..firsts[i+1]) */
    td_id_list pieces;
};

bool td_vocab_is_same(const td_tokenizer *a, const td_tokenizer *b)
{
    uint32_t n = td_min_u32(a->info.n_vocab, b->info.n_vocab);
    return td_tokenizer_hash(a, 0, n) == td_tokenizer_hash(b, 0, n);
}

/* -- twins ------------------------------------------------------------------------------------- */

typedef struct {
    const td_tokenizer *t;
    uint32_t *slots; /* [n_slots], id + 1, 0 for empty; open addressing */
    uint32_t n_slots;
} table;

static uint32_t slot_of(const table *tab, const char *bytes, size_t n_bytes)
{
    return (uint32_t)td_hash64(0, bytes, n_bytes) & (tab->n_slots - 1);
}

static bool fill(table *tab, const td_tokenizer *t, td_err *err)
{
    tab->t = t;
    for (tab->n_slots = 16; tab->n_slots < 2 * t->info.n_vocab;)
        tab->n_slots *= 2;
    tab->slots = td_alloc(tab->n_slots, sizeof tab->slots[0], err);
    if (tab->slots == NULL)
        return false;
    for (uint32_t id = 0; id < t->info.n_vocab; id++) {
        const td_vocab_token *token = &t->tokens[id];
        if (token->n_piece == 0)
            continue;
        uint32_t i = slot_of(tab, token->piece, token->n_piece), n = 0;
        while (tab->slots[i] != 0 && ++n < PROBES_MAX)
            i = (i + 1) & (tab->n_slots - 1);
        if (tab->slots[i] == 0)
            tab->slots[i] = id + 1;
    }
    return true;
}

/* The token of the table that stands for what `token` does: the same text and type before others,
 * and a plain token before one for a lone byte. */
static uint32_t find_twin(const table *tab, const td_tokenizer *t, uint32_t id)
{
    const td_vocab_token *token = &t->tokens[id];
    uint32_t best = TD_NO_TOKEN, best_score = 0;
    if (token->n_piece == 0)
        return TD_NO_TOKEN;
    uint32_t i = slot_of(tab, token->piece, token->n_piece);
    for (uint32_t n = 0; n < PROBES_MAX && tab->slots[i] != 0;
         n++, i = (i + 1) & (tab->n_slots - 1)) {
        uint32_t twin = tab->slots[i] - 1;
        const td_vocab_token *other = &tab->t->tokens[twin];
        if (other->n_piece != token->n_piece ||
            memcmp(other->piece, token->piece, token->n_piece) != 0 ||
            td_token_is_control(t, id) != td_token_is_control(tab->t, twin))
            continue;
        uint32_t score = 1 + ((other->attr & TD_ATTR_BYTE) == 0);
        if (other->type == token->type && other->n_text == token->n_text &&
            memcmp(other->text, token->text, token->n_text) == 0)
            score += 2;
        if (score > best_score) {
            best = twin;
            best_score = score;
        }
    }
    return best;
}

/* twins[id] of all tokens of `from` among those of `to`. */
static bool find_twins(const td_tokenizer *from, const td_tokenizer *to, uint32_t *twins,
                       td_err *err)
{
    table tab = {0};
    if (!fill(&tab, to, err))
        return false;
    for (uint32_t id = 0; id < from->info.n_vocab; id++)
        twins[id] = find_twin(&tab, from, id);
    td_free(tab.slots);
    const td_tokenizer_info *a = &from->info, *b = &to->info;
    uint32_t eot = b->eot != TD_NO_TOKEN ? b->eot : b->eos;
    uint32_t eos = b->eos != TD_NO_TOKEN ? b->eos : b->eot;
    const uint32_t roles[][2] = {{a->bos, b->bos}, {a->eot, eot}, {a->eos, eos}};
    for (size_t i = 0; i < TD_COUNT(roles); i++)
        if (roles[i][0] != TD_NO_TOKEN && twins[roles[i][0]] == TD_NO_TOKEN)
            twins[roles[i][0]] = roles[i][1];
    return true;
}

/* -- pieces ------------------------------------------------------------------------------------ */

/* What the draft reads instead of a token that it does not have. Bytes that are no text are given
 * one by one. What it cannot read at all is left out. */
static bool add_pieces(td_id_list *pieces, const td_vocab_token *token, const td_tokenizer *draft,
                       uint32_t n_max, td_err *err)
{
    uint32_t *ids = NULL;
    size_t n_ids = 0;
    td_err unreadable = {0};
    bool is_ok = true;
    if (!td_utf8_valid(token->piece, token->n_piece, NULL)) {
        for (uint32_t i = 0; is_ok && i < td_min_u32(token->n_piece, n_max); i++) {
            uint32_t id = draft->byte_ids[(unsigned char)token->piece[i]];
            is_ok = id == TD_NO_TOKEN || td_id_list_push(pieces, id, err);
        }
        return is_ok;
    }
    if (!td_tokenize_rest(draft, token->piece, token->n_piece, &ids, &n_ids, &unreadable))
        return unreadable.code == TD_E_DATA ||
               td_err_set(err, unreadable.code, "%s", unreadable.message);
    for (size_t i = 0; is_ok && i < n_ids && i < n_max; i++)
        is_ok = td_id_list_push(pieces, ids[i], err);
    td_free(ids);
    return is_ok;
}

static bool make_pieces(td_vocab_map *map, const td_tokenizer *target, const td_tokenizer *draft,
                        const uint32_t *twins, td_err *err)
{
    for (uint32_t id = 0; id < target->info.n_vocab; id++) {
        const td_vocab_token *token = &target->tokens[id];
        uint32_t n_before = (uint32_t)map->pieces.n;
        map->firsts[id] = n_before;
        if (twins[id] != TD_NO_TOKEN) {
            if (!td_id_list_push(&map->pieces, twins[id], err))
                return false;
            continue;
        }
        uint32_t n_max = map->info.is_aligned ? 1 : TD_TOKEN_MAX;
        if (token->n_piece > 0 && !add_pieces(&map->pieces, token, draft, n_max, err))
            return false;
        if (map->info.is_aligned && map->pieces.n == n_before &&
            !td_id_list_push(&map->pieces, 0, err)) /* any, to keep the place */
            return false;
    }
    map->firsts[target->info.n_vocab] = (uint32_t)map->pieces.n;
    return true;
}

/* -- the map ----------------------------------------------------------------------------------- */

static bool check_distance(const td_vocab_map *map, const td_tokenizer *target,
                           const td_tokenizer *draft, td_err *err)
{
    const td_vocab_map_info *info = &map->info;
    if ((uint64_t)info->n_twins * 3 >= (uint64_t)info->n_text * 2 && info->n_twins > 0)
        return true;
    uint32_t first = 0, n = td_min_u32(info->n_target, info->n_draft);
    while (first + 1 < n && td_tokenizer_hash(target, first, first + 1) ==
                                td_tokenizer_hash(draft, first, first + 1))
        first++;
    const td_vocab_token *a = &target->tokens[first], *b = &draft->tokens[first];
    return td_err_set(err, TD_E_UNAVAILABLE,
                      "the draft's vocabulary is too far from the target's: %u of the target's %u "
                      "tokens are among the draft's %u; needed: two thirds. The first that differs "
                      "is token %u: %s at the target, %s at the draft",
                      info->n_twins, info->n_text, info->n_draft, first,
                      td_text_quote(a->text, a->n_text).text,
                      td_text_quote(b->text, b->n_text).text);
}

/* How many tokens stand for anything, have a twin, and one of the same id. */
static void count_twins(td_vocab_map *map, const td_tokenizer *target, const uint32_t *twins)
{
    uint32_t n_same = 0;
    for (uint32_t id = 0; id < target->info.n_vocab; id++) {
        map->info.n_text += target->tokens[id].n_piece > 0;
        map->info.n_twins += target->tokens[id].n_piece > 0 && twins[id] != TD_NO_TOKEN;
        n_same += target->tokens[id].n_piece > 0 && twins[id] == id;
    }
    map->info.is_aligned = (uint64_t)n_same * 100 >= (uint64_t)map->info.n_text * 95;
}

td_vocab_map *td_vocab_map_create(const td_tokenizer *target, const td_tokenizer *draft,
                                  td_err *err)
{
    uint32_t n_target = target->info.n_vocab, n_draft = draft->info.n_vocab;
    td_vocab_map *map = td_alloc(1, sizeof *map, err);
    uint32_t *twins = td_alloc(n_target, sizeof twins[0], err);
    if (map == NULL || twins == NULL)
        goto fail;
    map->info.n_target = n_target;
    map->info.n_draft = n_draft;
    map->to_target = td_alloc(n_draft, sizeof map->to_target[0], err);
    map->firsts = td_alloc((size_t)n_target + 1, sizeof map->firsts[0], err);
    if (map->to_target == NULL || map->firsts == NULL || !find_twins(target, draft, twins, err) ||
        !find_twins(draft, target, map->to_target, err))
        goto fail;
    count_twins(map, target, twins);
    if (!check_distance(map, target, draft, err) || !make_pieces(map, target, draft, twins, err))
        goto fail;
    td_free(twins);
    return map;
fail:
    td_free(twins);
    td_vocab_map_destroy(&map);
    return NULL;
}

void td_vocab_map_destroy(td_vocab_map **map)
{
    if (*map == NULL)
        return;
    td_free((*map)->to_target);
    td_free((*map)->firsts);
    td_free((*map)->pieces.ids);
    td_free(*map);
    *map = NULL;
}

td_vocab_map_info td_vocab_map_get_info(const td_vocab_map *map) { return map->info; }

void td_vocab_map_to_draft(const td_vocab_map *map, uint32_t id, const uint32_t **ids,
                           uint32_t *n_ids)
{
    TD_ASSERT(id < map->info.n_target);
    *ids = map->pieces.ids + map->firsts[id];
    *n_ids = map->firsts[id + 1] - map->firsts[id];
}

uint32_t td_vocab_map_to_target(const td_vocab_map *map, uint32_t id)
{
    TD_ASSERT(id < map->info.n_draft);
    return map->to_target[id];
}

const uint32_t *td_vocab_map_targets(const td_vocab_map *map) { return map->to_target; }
