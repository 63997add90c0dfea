/* The tensors of a model as one table: name, shape in terms of the hyper-parameters, when a layer
 * has it, and which of a tensor's rows are meant. The same rows check a file, count bytes for
 * placement and load the weights, so an architecture that brings a tensor brings a row. Private to
 * model/. */
#ifndef TD_MODEL_TENSORS_H
#define TD_MODEL_TENSORS_H

#include "model/model_private.h"

typedef struct td_tensor_row td_tensor_row;

/* A tensor of the file that is wanted, as the weight to be made of it. */
typedef struct {
    const td_gguf_tensor *tensor, *factor; /* of all its products; or NULL */
    uint32_t slot;                         /* td_layer_weight or td_end_weight */
    bool is_vector;                        /* kept as F32 in one row, whatever the file says */
    bool is_turned;                        /* each part is transposed, and kept as F32 */
    uint32_t n_taps;                   /* a vector [n][n_taps], to be [n_taps][n]; 0: as it is */
    uint32_t n_cols, n_rows, n_groups; /* of the weight */
    /* Matrices that read the same are joined: those that follow the first, whose rows stand behind
     * its own (of each group), have no weight of their own. So are their biases, of whose columns
     * the same is said. */
    uint32_t into, row0, n_joined; /* the first's slot, rows before (of a group), rows of all */
    bool is_bias;                  /* one of several that are joined */
    /* Its rows are `count` of every `period` rows of the tensor, from `offset` on. */
    uint32_t period, offset, count;
    /* Of experts that are dealt: whose each of the file's n_dealt is, and which seat's are meant;
     * those stand in the weight in the file's order. NULL: all. */
    const uint8_t *seats;
    uint32_t n_dealt, seat;
} td_wanted;

/* The wanted tensors of layer `layer`, or of the model's ends (layer UINT32_MAX), of which the file
 * has been checked to have all it must; returns how many (<= TD_WANTED_MAX). */
#define TD_WANTED_MAX 64u
#define TD_ENDS       UINT32_MAX
uint32_t td_tensors_wanted(const td_model *m, uint32_t layer, td_wanted out[TD_WANTED_MAX]);

bool td_wanted_is_of_experts(const td_wanted *w);
/* Of a tensor of experts no more than those of one seat. seats: [n_expert]. */
void td_wanted_deal(td_wanted *w, const uint8_t *seats, uint32_t n_expert, uint32_t seat);

/* Of a weight that a wanted tensor begins; none where row0 > 0. */
td_weight_params td_wanted_params(const td_wanted *w);

#endif
