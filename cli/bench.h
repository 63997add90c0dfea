/* Shared by the files of `tandem bench`: what is measured (bench_measure.c for a model,
 * bench_draft.c for a pair) and how it is shown (bench_table.c). Private to cli/. */
#ifndef TD_CLI_BENCH_H
#define TD_CLI_BENCH_H

#include "base/energy.h"
#include "base/err.h"
#include "cli/options.h"
#include "coordinator/coordinator.h"
#include "target/chain.h"

#include <stdbool.h>
#include <stdint.h>

#define BENCH_REPEATS_MAX 101u
#define BENCH_LIST_MAX    32u /* items of --widths, --depth and the like */
#define BENCH_TESTS_MAX   (BENCH_LIST_MAX + 2)
#define BENCH_OPS_MAX     128u  /* distinct ops of a test */
#define BENCH_DEVICE_MAX  2080u /* bytes of a split's name: 16 SPECs of 128 and what joins them */

typedef struct {
    uint32_t n, items[BENCH_LIST_MAX];
} bench_list;

typedef enum { BENCH_TABLE, BENCH_CSV, BENCH_JSON, BENCH_JSONL, BENCH_OBJECT } bench_format;

/* The command line, read and checked. */
typedef struct {
    option_list models, devices;
    td_host hosts[TD_OPTION_LIST_MAX]; /* other machines that devices may name */
    uint32_t n_hosts;
    const td_type_info *wire; /* between them; NULL: f32 */
    const char *place, *key;
    bench_list widths, depths, draft_max;
    uint32_t n_types_k, n_types_v;
    const td_type_info *types_k[BENCH_LIST_MAX], *types_v[BENCH_LIST_MAX];
    td_cache_types kv; /* all else of caches; types are those */
    uint32_t n_prefill, n_decode, n_repeats;
    bool is_each, is_together, is_ops, is_measure, is_prompts;
    bench_format format;
    /* A pair. */
    const char *draft, *draft_device, *in_path;
    td_cache_types draft_kv; /* td_run_params */
    uint32_t n_predict, n_parallel;
    float temperature, accept; /* accept < 0: the draft's own */
    uint64_t seed;
} bench_params;

/* -- figures ----------------------------------------------------------------------------------- */

typedef struct {
    uint32_t n;
    double values[BENCH_REPEATS_MAX];
} bench_samples;

typedef struct {
    double median, min, max, mean, deviation;
} bench_summary;

/* NaN everywhere if n is 0. */
bench_summary td_bench_summarize(const bench_samples *s);

/* What is measured of a model and its device. */
typedef struct {
    const char *model; /* path */
    uint64_t model_bytes;
    char device[BENCH_DEVICE_MAX]; /* SPECs joined by '+' */
    const char *draft_device;      /* of a pair */
    const char *beside;            /* other devices that ran at the same time; NULL: none */
    /* As the command line has them, "f16"; "q4_0+rot": rotated, "q8_0+keep": but for some layers */
    char type_k[24], type_v[24];
    char kept[256]; /* layers of other types (td_cache_types_list_kept) */
    uint32_t depth;
    const char *chat; /* --prompts: how they are written (td_chat_describe) */
} bench_case;

/* The i-th cache of all that types_k and types_v are together. */
td_cache_types td_bench_cache(const bench_params *p, uint32_t i);
/* Fills in what comes from the model and the types. */
void td_bench_describe(bench_case *c, const td_model *model, const td_cache_types *kv);

typedef enum { BENCH_PREFILL, BENCH_DECODE, BENCH_VERIFY, BENCH_PAIR, BENCH_PROMPT } bench_kind;

/* One test. Times in seconds, a sample is a whole run of n_tokens tokens. */
typedef struct {
    bench_kind kind;
    double n_tokens;  /* of a run; of a verification: its rows; of a pair, a prompt: generated */
    double n_untimed; /* of them, what the seconds do not cover: the first one of a prompt */
    bench_samples seconds;
    bench_samples host_us; /* of GPUs: what this thread worked itself, a pass and part */
    td_device_counts made; /* by its runs, the one that warms up too */
    double c;              /* verification: time / time of one row; else NaN */
    double n_experts;      /* asked by a pass, of a layer that has any; or NaN */
    double n_bytes;        /* a run reads at least, or NaN */
    double limit_seconds;  /* those bytes at the measured bandwidth, or NaN */
    double joules[TD_ENERGY_SOURCES_MAX]; /* of all runs that gave samples */
    /* --ops: of n_profiled runs more */
    uint32_t n_ops;
    double n_profiled;
    td_op_time *ops;          /* [n_ops] */
    td_program_counts counts; /* of the same runs */
    /* A pair. */
    uint32_t k;     /* 0: plain */
    bool is_ngram;  /* drafts are found in the texts */
    bool is_chosen; /* k is the most; how many is chosen each round */
    uint64_t n_drafted, n_accepted, n_rounds, n_proposed; /* of all runs */
    uint64_t prefill_us, verify_us, draft_us;             /* busy times of all runs */
    bench_samples speedups;                               /* over the plain run of the same round */
    bool is_same_text;                                    /* as the plain run's */
    const char *prompt;                                   /* of a prompt: its name, or "all" */
    double n_prompt_tokens;
} bench_test;

/* -- what is shown ----------------------------------------------------------------------------- */

typedef struct {
    bench_format format;
    const bench_params *params;
    const td_energy *energy; /* its sources, or NULL */
    uint64_t n_rows;
    bool is_pair;
} bench_output;

/* Prints the tests of a case to stdout. */
bool td_bench_output_case(bench_output *o, const bench_case *c, const bench_test *tests,
                          uint32_t n_tests, td_err *err);
/* Closes what the format leaves open. */
void td_bench_output_end(bench_output *o);

/* -- what is done ------------------------------------------------------------------------------ */

/* All models, devices and types of the command line, one after another. */
bool td_bench_models(const bench_params *p, td_err *err);
/* One model over devices of which some are elsewhere: by the target of a run, its links among what
 * is measured (bench_remote.c). */
bool td_bench_remote(const bench_params *p, const td_model *model, const td_cache_types *kv,
                     bench_output *out, td_err *err);
/* Of measured tests: c(n) against a verification of one row, or a step of decoding. */
void td_bench_compare_widths(bench_test *tests, uint32_t n_tests);
/* The prompts of --prompts (bench_prompts.c): their number, their names, which one has a name, and
 * JSONL of those whose bit of left_out is 0, as messages or as they are. */
uint32_t td_bench_n_prompts(void);
const char *td_bench_prompt_name(uint32_t i);
uint32_t td_bench_find_prompt(const char *name);
bool td_bench_write_prompts(int fd, bool is_chat, uint32_t left_out, td_err *err);
/* rows: [n_prompts + 1][n_modes], those of all prompts last. A text of a mode is added to its row;
 * at the end speed-ups and the last rows are made of the others, and those of prompts that gave no
 * text go: the number of rows left. */
void td_bench_add_prompt(bench_test *rows, uint32_t n_modes, uint32_t i_mode, const char *name,
                         const td_sequence_info *info);
uint32_t td_bench_sum_prompts(bench_test *rows, uint32_t n_modes);
/* Plain decoding and each k, turn by turn; or plain decoding, the draft and what is found in the
 * texts, prompt by prompt. *signal: of one that ended it early, else 0. */
bool td_bench_pair(const bench_params *p, int *signal, td_err *err);

#endif
