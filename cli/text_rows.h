/* The options that decide texts beside the prompts, for tables whose struct has `run` and `stops`
 * (td_run_params, option_list) and whose offsets are AT(name). Private to cli/. */
#ifndef TD_CLI_TEXT_ROWS_H
#define TD_CLI_TEXT_ROWS_H

#define TEXT_ROWS                                                                                   \
    {"-n", "run.n", OPT_U32, AT(run.n_predict),                                                     \
     1,    1 << 24, "N",     "tokens to generate at most (default: 256)"},                          \
        {"--temp",  "sampling.temp",                                                                \
         OPT_FLOAT, AT(run.sampling.temperature),                                                   \
         0,         100,                                                                            \
         "T",       "temperature; 0 is greedy (default: 0.8)"},                                     \
        {"--top-k", "sampling.top_k", OPT_U32, AT(run.sampling.top_k),                              \
         0,         1 << 20,          "K",     "keep the K most probable; 0 is all (default: 0)"},  \
        {"--top-p", "sampling.top_p",                                                               \
         OPT_FLOAT, AT(run.sampling.top_p),                                                         \
         0,         1,                                                                              \
         "P",       "keep the smallest set of mass P, which is above 0 (default: 1)"},              \
        {"--min-p", "sampling.min_p",                                                               \
         OPT_FLOAT, AT(run.sampling.min_p),                                                         \
         0,         1,                                                                              \
         "P",       "drop what is below P times the largest; P is below 1 (default: 0)"},           \
        {"--repeat-penalty",                                                                        \
         "sampling.repeat_penalty",                                                                 \
         OPT_FLOAT,                                                                                 \
         AT(run.sampling.repeat_penalty),                                                           \
         0.01,                                                                                      \
         100,                                                                                       \
         "R",                                                                                       \
         "penalty of the last 64 tokens; 1 is none (default: 1)"},                                  \
        {"--seed", "sampling.seed",       OPT_U64, AT(run.seed),                                    \
         0,        9223372036854774784.0, "S",     "of the run (default: 0)"},                      \
        {"--stop", "sampling.stop",                                                                 \
         OPT_LIST, AT(stops),                                                                       \
         0,        0,                                                                               \
         "TEXT",   "end a text where TEXT appears, which is cut off; may be given up to 16 times"}, \
    {                                                                                               \
        "--ignore-eos", "run.ignore_eos", OPT_FLAG, AT(run.ignore_eos), 0, 0, NULL,                 \
            "go on past end-of-text tokens"                                                         \
    }

#endif
