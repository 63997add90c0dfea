/* What a model's cache is kept as: what was asked for, held against the model.
 *
 * Rules may name the first and the last layer, which a model says; and some layers keep their keys
 * in f16 although a quantized type was asked for, because their biases are far larger than others'
 * (docs/models.md): such a bias is a part of every key, so that its channels alone set the scale of
 * their blocks and what else the key says is rounded away. Qwen2 and Qwen2.5 are like that in their
 * first and last layers. Families that take quantized caches badly are a table here. */
#ifndef TD_MODEL_CACHE_CHOICE_H
#define TD_MODEL_CACHE_CHOICE_H

#include "base/err.h"
#include "model/cache_types.h"
#include "model/model.h"

/* Makes rules those of the model: layers 0-based and in order, one rule for a run of layers that
 * are kept otherwise than t->k and t->v say or whose keys have outlying biases (though a rule said
 * t->k), so the same caches have the same rules, and what was chosen once is not changed by another
 * time. TD_E_USAGE: a layer the model has not, or that has no keys; TD_E_IO, TD_E_NOMEM. */
bool td_cache_choose(td_cache_types *t, const td_model *m, td_err *err);

/* The same for a draft: types that it was not given (NULL) are the target's, but F16 where it has
 * less than TD_CACHE_SMALL_PARAMS parameters, and at least what its family needs; rotation is the
 * target's, rules are its own. */
#define TD_CACHE_SMALL_PARAMS 1000000000u
bool td_cache_choose_draft(td_cache_types *draft, const td_cache_types *target, const td_model *m,
                           td_err *err);

/* Keys' biases, by layer: their Euclidean norms, 0 where there is none; and which of them are
 * outlying: more than 8 times the median of those there are, and 4 in the root mean square of an
 * element. norms [n_layer]; *median of those above 0. TD_E_IO, TD_E_NOMEM. */
bool td_cache_find_outliers(const td_model *m, float *norms, td_layer_set *outlying, float *median,
                            td_err *err);

/* "biases of keys: layer 0 605, layer 27 921, median 22": the outlying ones, where keys are
 * quantized; "": there are none, or a file cannot be read. */
void td_cache_write_outliers(const td_cache_types *t, const td_model *m, char *out, size_t n_bytes);

/* The types of least bits that the model's family is known to take well, F16, and what was measured
 * with less. NULL: nothing is known of it. */
typedef struct {
    const char *name, *figure;
    const td_type_info *k, *v;
} td_cache_advice;
bool td_cache_find_advice(const td_model *m, td_cache_advice *out);
/* One line of a cache that has less, for who insists on it. */
void td_cache_warn(const td_cache_types *t, const td_model *m);
/* Whether a type has less bits than another. */
bool td_cache_is_less(const td_type_info *type, const td_type_info *than);

#endif
