/* The inside of td_model, for model/ alone. */
#ifndef TD_MODEL_PRIVATE_H
#define TD_MODEL_PRIVATE_H

#include "model/model.h"

struct td_model {
    char *path;
    td_gguf *gguf;
    td_tokenizer *tokenizer;
    const td_arch *arch;
    td_hparams hparams;
    double *rope_speed;    /* [n_rot / 2] radians per position */
    double rope_magnitude; /* of cos and sin */
};

#endif
