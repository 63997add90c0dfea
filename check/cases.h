/* The cases of `tandem check`: every op at the shapes of a model of 0.6 billion weights, one of 8
 * and a mixture of experts, in every weight type and cache type. Every kind of op has one
 * (td_cases_cover; a test and the command itself ask). Immutable; any thread. */
#ifndef TD_CHECK_CASES_H
#define TD_CHECK_CASES_H

#include "check/rig.h"

typedef enum {
    TD_CASE_ROWS = 1,   /* rows and repeats */
    TD_CASE_VALUES = 2, /* against the scalar device */
    TD_CASE_ALL = 3,
} td_case_parts;

#define TD_CASE_LAYER "layer" /* several ops, as they stand together in a model */

typedef struct td_case {
    const char *op;   /* td_op_kind_name: the one on trial; or TD_CASE_LAYER */
    char shape[96];   /* for people: "8B Q4_K 12288x4096" */
    td_case_parts parts;
    /* Another op that has to be in order for this case to tell anything of its own: one that reads
     * what this one writes where nobody else can, or made what it reads; or NULL. */
    const char *needs;
    bool (*build)(td_rig *r, td_device *dev, const struct td_case *c, td_err *err);
    const char *type, *type_v; /* of weights, of the cache */
    uint32_t n[6];             /* sizes, as build reads them */
    int variant;
    td_mode mode;
    uint32_t n_data;
    bool is_large; /* of real size: not for a software device, nor a quick look */
} td_case;

/* Calls visit for each case in the order that `needs` asks for, until it returns false. is_small:
 * shapes cut to what a software driver can do. */
void td_cases_visit(bool is_small, bool (*visit)(const td_case *c, void *user), void *user);

/* The first kind of op that has no case, or NULL. */
const char *td_cases_find_gap(void);

#endif
