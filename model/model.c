/* Opening a model. */
#include "model/model.h"

#include "base/mem.h"
#include "model/model_private.h"
#include "model/vocab_map.h"

#include <string.h>

static bool open_parts(td_model *m, const char *path, bool is_head, td_err *err)
{
    m->path = td_strndup(path, strlen(path), err);
    m->gguf = m->path ? td_gguf_open(path, err) : NULL;
    if (!m->gguf || !td_hparams_read(m, err))
        return false;
    m->tokenizer = td_tokenizer_create(m->gguf, NULL, err);
    if (!m->tokenizer)
        return false;
    m->hparams.n_vocab = td_tokenizer_get_info(m->tokenizer)->n_vocab;
    m->hparams.is_tied = !td_gguf_find_tensor(m->gguf, "output.weight");
    if (is_head ? !td_model_check_head(m, err) : !td_weights_check(m, err))
        return false;
    /* created to check its parameters */
    td_rope *rope = td_rope_create(m, m->hparams.n_ctx_train, err);
    bool is_ok = rope;
    td_rope_destroy(&rope);
    return is_ok;
}

td_model *td_model_open(const char *path, td_err *err)
{
    td_model *m = td_alloc(1, sizeof *m, err);
    if (!m)
        return NULL;
    if (!open_parts(m, path, false, err)) {
        td_err_prepend(err, "%s", path);
        td_model_close(&m);
    }
    return m;
}

/* Keys that a head and its model must have in common: all that are numbers, but for what may be
 * said of layers that one of the files lacks. */
static bool is_of(const td_model *head, const td_model *target)
{
    td_hparams a = head->hparams, b = target->hparams;
    a.n_nextn = b.n_nextn = a.n_ctx_train = b.n_ctx_train = 0;
    a.is_tied = b.is_tied = false;
    a.local = b.local = a.recurrent = b.recurrent = a.routed = b.routed = (td_layer_set){0};
    return head->arch == target->arch && !memcmp(&a, &b, sizeof a) &&
           td_vocab_is_same(head->tokenizer, target->tokenizer);
}

static td_model *open_head(const char *path, const td_model *target, td_err *err)
{
    td_model *m = td_alloc(1, sizeof *m, err);
    if (!m)
        return NULL;
    bool is_ok = open_parts(m, path, true, err);
    if (is_ok && !is_of(m, target))
        is_ok = td_err_set(err, TD_E_DATA,
                           "its head is not one of %s: architecture, keys and vocabulary must be "
                           "the same (%s of %u layers of %u here, %s of %u of %u there)",
                           target->path, m->arch->name, m->hparams.n_layer, m->hparams.n_embd,
                           target->arch->name, target->hparams.n_layer, target->hparams.n_embd);
    if (!is_ok) {
        td_err_prepend(err, "%s", path);
        td_model_close(&m);
    }
    return m;
}

const char *td_head_name(const char *draft)
{
    if (!draft || strncmp(draft, "mtp", 3) || (draft[3] && draft[3] != ':'))
        return NULL;
    return draft + (draft[3] ? 4 : 3);
}

const char *td_head_beside(const char *draft)
{
    bool is_list = draft && (!strncmp(draft, "mtp,", 4) || !strncmp(draft, "mtp:", 4));
    const char *comma = is_list ? strrchr(draft, ',') : NULL;
    return comma ? comma + 1 : NULL;
}

bool td_head_is_auto(const char *draft) { return draft && !strcmp(draft, "auto"); }

const td_model *td_head_find(const char *name, const td_model *target, td_model **file, td_err *err)
{
    if (*name)
        return *file = open_head(name, target, err);
    return td_model_check_head(target, err) ? target : NULL;
}

void td_model_close(td_model **m)
{
    if (!*m)
        return;
    td_tokenizer_destroy(&(*m)->tokenizer);
    td_gguf_close(&(*m)->gguf);
    td_free((*m)->path);
    td_free(*m);
    *m = NULL;
}

const td_gguf *td_model_gguf(const td_model *m) { return m->gguf; }
const td_arch *td_model_arch(const td_model *m) { return m->arch; }
const td_hparams *td_model_hparams(const td_model *m) { return &m->hparams; }
const td_tokenizer *td_model_tokenizer(const td_model *m) { return m->tokenizer; }
const char *td_model_path(const td_model *m) { return m->path; }

const char *td_model_name(const td_model *m)
{
    const char *name;
    if (td_gguf_has(m->gguf, "general.name") &&
        td_gguf_get_str(m->gguf, "general.name", &name, NULL, NULL))
        return name;
    const char *slash = strrchr(m->path, '/');
    return slash ? slash + 1 : m->path;
}
