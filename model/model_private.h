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
};

/* hparams.c: reads and checks all but n_vocab and is_tied. */
bool td_hparams_read(td_model *m, td_err *err);

#endif
