/* Machines that are not here: what their memory, arithmetic and links would do with a model, from
 * figures in a file (configs/hardware). A pass of n rows over some layers of a device takes
 *
 *     bytes / (bandwidth * share) + 2 * parameters * (n - 1) / (arithmetic * share)
 *         + layers * overhead
 *
 * where bytes are the weights that n rows touch (of E experts, u asked by each of n rows,
 * E (1 - (1 - u/E)^n)), and one row's arithmetic hides behind the reading of its weights. The
 * shares and the overhead of a layer are what programs reach, fitted to published figures of single
 * devices (scripts/fit_hardware.py, docs/planning.md).
 *
 * Owns nothing but what td_hardware_open gives. Any thread. Errors: TD_E_IO, TD_E_DATA (file, key,
 * value, the values allowed), TD_E_NOMEM. */
#ifndef TD_PLANNING_HARDWARE_H
#define TD_PLANNING_HARDWARE_H

#include "planning/speed.h"

#define TD_HARDWARE_MODELS_MAX 64u
#define TD_HARDWARE_NAME_MAX   64u
#define TD_HARDWARE_ABOUT_MAX  256u
#define TD_HARDWARE_CTX        8192u /* positions of each sequence that have room in an outlook */
#define TD_HARDWARE_SEQUENCES  8u    /* of its batch */

/* What tandem's wire of stages takes, measured on 29 November 2026 with two stage workers of one
 * core in network namespaces, everything encrypted, 107 M Q8_0 of n_embd 1024 (`Several machines`
 * in docs/performance.md has the runs; scripts/bench_machines.py): of the coordinator for each
 * round, also behind round trips of 5 ms (between them, by the trip); bytes that a token's message
 * holds beside its activations at most, on each hop; bytes on the link for one of a message, with
 * what TCP, ZeroMQ and CURVE add (4,355 for 4,224); the speed with keys over that without. */
#define TD_WIRE_ROUND_US     99.0
#define TD_WIRE_ROUND_FAR_US 133.0
#define TD_WIRE_FAR_US       5000.0
#define TD_WIRE_TOKEN_BYTES  128.0
#define TD_WIRE_ON_LINK      (4355.0 / 4224.0)
#define TD_WIRE_KEYS_SHARE   0.99

#define TD_HARDWARE_LINKS_MAX 16u

typedef enum {
    TD_HARDWARE_DENSE,
    TD_HARDWARE_EXPERTS,
    TD_HARDWARE_HYBRID, /* recurrent layers between those with attention */
    TD_HARDWARE_HYBRID_EXPERTS,
    TD_HARDWARE_KIND_COUNT
} td_hardware_kind;

typedef struct {
    char name[TD_HARDWARE_NAME_MAX];
    td_hardware_kind kind;
    uint32_t n_layers, n_embd;
    uint32_t n_experts, n_used;        /* 0: none */
    double other_bytes, experts_bytes; /* of all layers: read by each token; by those who ask */
    double output_bytes;               /* of the matrix that makes logits */
    double n_active;                   /* parameters that a token meets */
    double kv_bytes;                   /* of a position, all layers */
} td_hardware_model;

typedef struct {
    char name[TD_HARDWARE_NAME_MAX];
    double bytes_per_s, flops_per_s, memory_bytes;
    double shared_bytes; /* of the memory: the system's, which all such devices share */
    uint32_t unit;       /* devices of one number take turns */
    uint32_t machine;    /* 0: the coordinator's; from one to another it is the link's way */
    double bandwidth_share, compute_share;
    double layer_us[TD_HARDWARE_KIND_COUNT];
} td_hardware_device;

typedef struct {
    char name[TD_HARDWARE_NAME_MAX];
    double round_trip_us, bytes_per_s;
} td_hardware_link;

typedef struct {
    char about[TD_HARDWARE_ABOUT_MAX];
    uint32_t n_devices, n_models;
    td_hardware_device devices[TD_SPEED_DEVICES_MAX];
    td_hardware_model models[TD_HARDWARE_MODELS_MAX];
    const td_hardware_model *draft;         /* of models: one of the size that drafts have */
    double round_trip_us, link_bytes_per_s; /* from a device to the next one */
    bool is_half;                           /* activations between machines are f16 */
    /* What to compare: links, models over all devices, published rows of this file. */
    uint32_t n_links, n_compared;
    td_hardware_link links[TD_HARDWARE_LINKS_MAX];
    const td_hardware_model *compared[TD_HARDWARE_MODELS_MAX];
    char published[TD_HARDWARE_ABOUT_MAX]; /* a file of rows; "": none */
    double system_bytes;                   /* what those that share the system's memory have */
    double scratch_bytes;                  /* taken of each device that is used */
} td_hardware;

/* Reads a file of devices and the file of models that it names. */
td_hardware *td_hardware_open(const char *path, td_err *err);
/* Of models alone; the rest is to be filled in. */
td_hardware *td_hardware_create(const char *models_path, td_err *err);
void td_hardware_close(td_hardware **hardware);
/* NULL: no such model. */
const td_hardware_model *td_hardware_find(const td_hardware *h, const char *name);

/* Microseconds of a pass of n_rows rows over n_layers layers, with the output matrix or without. */
double td_hardware_pass_us(const td_hardware_device *d, const td_hardware_model *m,
                           uint32_t n_layers, double n_rows, bool has_output);

/* The same of all devices one after another (layers[i] on device i; 0: it is left out), with what a
 * program needs that asks each remote device in turn: n_turns round trips and payload_bytes for
 * each device after the first. */
double td_hardware_turns_us(const td_hardware *h, const td_hardware_model *m,
                            const uint32_t *layers, double n_rows, bool has_output,
                            uint32_t n_turns, double payload_bytes);

/* The best placements of a model as tandem would run it (td_speed_search), hops being one way with
 * the activations of a row: one stream of 1,024 tokens behind a prompt of as many, the same with
 * h->draft on the device where it does most (k 0 where it does not pay), and a batch. */
typedef struct {
    bool fits; /* all three */
    bool fits_stream;
    td_speed_row stream, drafted, batch;
} td_hardware_outlook;

/* Bytes of a token's message from machine to machine. */
double td_hardware_row_bytes(const td_hardware_model *m, bool is_half);

/* As tandem runs so many layers on each device (layers[i] on device i; 0: it is left out), with or
 * without others at the same time: n_prompt positions, then as many tokens. */
bool td_hardware_run(const td_hardware *h, const td_hardware_model *m, const uint32_t *layers,
                     uint32_t n_sequences, uint32_t n_prompt, td_speed_row *out, td_err *err);

bool td_hardware_look(const td_hardware *h, const td_hardware_model *m, td_hardware_outlook *out,
                      td_err *err);

#endif
