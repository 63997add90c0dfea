/* One table of options feeds the command line, the configuration file and --help.
 *
 * A row names a flag, its place in a configuration file ("section.key"), its kind and range, and
 * the field of the caller's struct it sets. Flags win over the file. Every value is checked here;
 * errors name the flag or FILE: section.key, the value seen and the values allowed (TD_E_USAGE;
 * TD_E_DATA for a file). Strings point into argv or the configuration document, which must live
 * as long as the struct. */
#ifndef TD_CLI_OPTIONS_H
#define TD_CLI_OPTIONS_H

#include "base/err.h"
#include "base/json.h"
#include "planning/placement.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TD_OPTION_LIST_MAX 16u

/* What OPT_CACHE_TYPE allows. */
#define TD_OPTIONS_CACHE_TYPES "f32, f16, bf16, q8_0, q6_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"

typedef enum {
    OPT_FLAG,       /* bool */
    OPT_U32,        /* uint32_t in min..max */
    OPT_U64,        /* uint64_t in min..max */
    OPT_FLOAT,      /* float in min..max */
    OPT_TEXT,       /* const char * */
    OPT_READ,       /* the same: a file that is read, "-" for standard input */
    OPT_WRITE,      /* a file that is written, "-" for standard output */
    OPT_LIST,       /* option_list: given several times on the command line, a list in the file */
    OPT_HOSTS,      /* option_hosts: NAME=EP each; in a file an object of a name's own keys */
    OPT_CACHE_TYPE, /* const td_type_info * that may hold keys or values */
    OPT_ROTATE,     /* td_cache_types: how they are rotated */
    OPT_KEEP,       /* and what some layers have of their own: given several times, a list in the
                     * file; these and */
    OPT_KEEP_FILE,  /* those of a file add up. The first of them on the command line replaces what a
                     * configuration says of either */
    OPT_WIRE_TYPE,  /* const td_type_info * of activations between machines */
} option_kind;

typedef struct {
    uint32_t n;
    const char *items[TD_OPTION_LIST_MAX];
} option_list;

#define TD_OPTION_HOST_BYTES 448u

typedef struct {
    uint32_t n;
    char items[TD_OPTION_LIST_MAX][TD_OPTION_HOST_BYTES]; /* "NAME=EP" or "NAME=EP,KEY" */
} option_hosts;

typedef struct {
    const char *flag;   /* "--temp" or "-n" */
    const char *config; /* "sampling.temp", or NULL: not in files */
    option_kind kind;
    size_t offset;        /* of the field */
    double min, max;      /* numbers */
    const char *argument; /* "T" in the help; NULL for flags */
    const char *help;     /* the default included, the range not: it is shown by itself */
} option;

typedef struct {
    const char *name;  /* "generate" */
    const char *usage; /* "tandem generate --target M.gguf [options]" */
    const char *summary;
    const option *options;
    size_t n_options;
} command_help;

/* Parses argv[0..argc) into *fields. A flag given twice: the last one wins; a list grows. *is_help
 * is set by --help, and parsing stops there. */
bool td_options_parse(const command_help *help, int argc, char **argv, void *fields, bool *is_help,
                      td_err *err);

/* Reads the name of a type that may hold keys or values, as of an OPT_CACHE_TYPE. TD_E_USAGE. */
bool td_options_read_cache_type(const char *flag, const char *text, const td_type_info **out,
                                td_err *err);

/* Reads what OPT_HOSTS holds: hosts[0..n), each name once, of which the endpoints can be reached
 * with our key of that name (NULL: the only one). *hosts points into `texts`. TD_E_USAGE. */
bool td_options_read_hosts(const option_hosts *texts, const char *key,
                           td_host hosts[TD_OPTION_LIST_MAX], td_err *err);

/* Applies a configuration file. *document must be destroyed after the last use of the fields. */
bool td_options_read_config(const command_help *help, const char *path, void *fields,
                            td_json **document, td_err *err);

/* The (last) value of --config among argv, or NULL; so that the file comes first and flags win. */
const char *td_options_find_config(const command_help *help, int argc, char **argv);

/* After all of them are known, before anything is opened: no file of OPT_WRITE is another of them
 * or one of OPT_READ, TD_E_USAGE, and each can be written as far as may be seen, TD_E_IO. Also of
 * what the table does not know: `also_read`, or NULL, and standard output where `is_printing`. */
bool td_options_check_files(const command_help *help, void *fields, const char *also_read,
                            bool is_printing, td_err *err);

void td_options_print_help(const command_help *help);

#endif
