/* The prompts of `tandem bench --prompts`: nine, of the kinds by which people compare speculation.
 * How much of a text can be guessed depends on what it is: code and summaries repeat what stands
 * there already, stories do not. The last one is long, for what is in the prompt costs time too. */
#include "cli/bench.h"

#include "base/check.h"
#include "base/io.h"
#include "base/json_writer.h"

#include <string.h>

static const struct {
    const char *name, *text;
} prompts[] = {
    {"python", "Write a Python function that reads a CSV file of orders with the columns date "
               "(YYYY-MM-DD), customer and amount, and returns a dictionary with the total of each "
               "month. Lines that cannot be read are counted and skipped. Then show a call of it."},
    {"c", "Write a C function that removes the repeated numbers from a sorted array of int in "
          "place and returns how many are left. Add a main function that tests it with an empty "
          "array, with one that has no repetition and with one where all numbers are the same."},
    {"explanation", "Explain to a student in the first year how a hash table finds a key, what a "
                    "collision is, and two ways of dealing with collisions, each with its price."},
    {"summary",
     "Summarise in three sentences: The harbour of the town silted up so slowly that for two "
     "generations nobody spoke of it. Ships with a deep keel began to anchor outside and to send "
     "their goods ashore in boats, which gave work to the boatmen, so that they were the last to "
     "complain. When the council at length ordered the channel to be dredged, the owners of the "
     "salt works objected, because the mud was to be dumped before their intakes. The dispute went "
     "on for eleven years. By then the railway had reached the next bay, the merchants had built "
     "their stores there, and the dredger, which had been paid for in advance, was sold to a canal "
     "company inland. The salt works outlived the harbour by a few years, and the boatmen took to "
     "fishing."},
    {"facts", "Answer each with one short sentence. What is the boiling point of water at sea "
              "level? Which planet is closest to the sun? How many sides has a hexagon? Who wrote "
              "Hamlet? What is the chemical symbol of iron? Which ocean lies between Europe and "
              "North America?"},
    {"translation",
     "Translate into German: The bridge is closed until Thursday. Whoever wants to cross the river "
     "before that takes the ferry behind the mill, which leaves every half hour from six in the "
     "morning to nine at night. Bicycles are free of charge, dogs have to be on a lead. In strong "
     "wind the ferry stays on the other bank, and a red flag on the mill says so."},
    {"story", "Write the beginning of a story about a lighthouse keeper who finds, after a storm, "
              "a letter that is addressed to her in her own handwriting."},
    {"mathematics",
     "Solve step by step: A tank holds 2400 litres. One pipe fills it in 40 minutes, another one "
     "in an hour, and a drain empties the full tank in two hours. The tank is one quarter full "
     "when both pipes and the drain are opened. After how many minutes is it full, and how many "
     "litres went through the drain by then?"},
    {"review",
     "Review the following program. List its mistakes in order of how much harm they do, each with "
     "the line, what can happen and how to mend it; then give the corrected function take().\n\n"
     "#include <pthread.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n"
     "#define N_SLOTS 16\n\n"
     "/* A queue between one thread that reads lines and several that work on them. */\n"
     "struct queue {\n    char *items[N_SLOTS];\n    int head, tail, is_closed;\n"
     "    pthread_mutex_t lock;\n    pthread_cond_t changed;\n};\n\n"
     "static struct queue *make(void)\n{\n    struct queue *q = malloc(sizeof(struct queue));\n"
     "    q->head = q->tail = 0;\n    pthread_mutex_init(&q->lock, NULL);\n"
     "    pthread_cond_init(&q->changed, NULL);\n    return q;\n}\n\n"
     "static void put(struct queue *q, const char *line)\n{\n    pthread_mutex_lock(&q->lock);\n"
     "    if (q->tail - q->head == N_SLOTS)\n        pthread_cond_wait(&q->changed, &q->lock);\n"
     "    char *copy = malloc(strlen(line));\n    strcpy(copy, line);\n"
     "    q->items[q->tail++ % N_SLOTS] = copy;\n    pthread_cond_signal(&q->changed);\n"
     "    pthread_mutex_unlock(&q->lock);\n}\n\n"
     "static char *take(struct queue *q)\n{\n    pthread_mutex_lock(&q->lock);\n"
     "    while (q->head == q->tail && !q->is_closed)\n"
     "        pthread_cond_wait(&q->changed, &q->lock);\n"
     "    if (q->is_closed)\n        return NULL;\n"
     "    char *line = q->items[q->head++ % N_SLOTS];\n"
     "    pthread_mutex_unlock(&q->lock);\n    return line;\n}\n\n"
     "static void *work(void *user)\n{\n    struct queue *q = user;\n    char *line;\n"
     "    while ((line = take(q))) {\n        int n_words = 0, is_inside = 0;\n"
     "        for (int i = 0; i <= strlen(line); i++) {\n"
     "            int is_letter = line[i] != ' ' && line[i] != '\\n';\n"
     "            if (is_letter && !is_inside)\n                n_words++;\n"
     "            is_inside = is_letter;\n        }\n"
     "        printf(\"%d words: %s\", n_words, line);\n    }\n    return NULL;\n}\n\n"
     "int main(int argc, char **argv)\n{\n    int n_threads = atoi(argv[1]);\n"
     "    pthread_t threads[8];\n    struct queue *q = make();\n    char line[100];\n"
     "    for (int i = 0; i < n_threads; i++)\n"
     "        pthread_create(&threads[i], NULL, work, q);\n"
     "    while (fgets(line, 200, stdin))\n        put(q, line);\n    q->is_closed = 1;\n"
     "    for (int i = 0; i < n_threads; i++)\n        pthread_join(threads[i], NULL);\n"
     "    free(q);\n    return 0;\n}\n"},
};

uint32_t td_bench_n_prompts(void) { return TD_COUNT(prompts); }

const char *td_bench_prompt_name(uint32_t i) { return prompts[i].name; }

uint32_t td_bench_find_prompt(const char *name)
{
    uint32_t i = 0;
    while (i < TD_COUNT(prompts) && strcmp(prompts[i].name, name) != 0)
        i++;
    TD_ASSERT(i < TD_COUNT(prompts));
    return i;
}

static void write_prompt(td_json_writer *w, uint32_t i, bool is_chat)
{
    td_json_begin_object(w);
    td_json_put_string(w, "id", prompts[i].name);
    if (is_chat) {
        td_json_write_key(w, "messages");
        td_json_begin_array(w);
        td_json_begin_object(w);
        td_json_put_string(w, "role", "user");
        td_json_put_string(w, "content", prompts[i].text);
        td_json_end_object(w);
        td_json_end_array(w);
    } else {
        td_json_put_string(w, "prompt", prompts[i].text);
    }
    td_json_end_object(w);
}

bool td_bench_write_prompts(int fd, bool is_chat, uint32_t left_out, td_err *err)
{
    td_json_writer *w = td_json_writer_create(false, err);
    bool is_ok = w;
    for (uint32_t i = 0; is_ok && i < TD_COUNT(prompts); i++) {
        const char *line;
        size_t n_bytes;
        if (left_out >> i & 1)
            continue;
        write_prompt(w, i, is_chat);
        is_ok = td_json_writer_end(w, &line, &n_bytes, err) &&
                td_io_write_all(fd, "prompts", line, n_bytes, err) &&
                td_io_write_all(fd, "prompts", "\n", 1, err);
    }
    td_json_writer_destroy(&w);
    return is_ok;
}

/* -- rows -------------------------------------------------------------------------------------- */

/* Seconds are those of decoding, from the first token to the last: how a prompt is read has tests
 * of its own. A text of one token has none. */
void td_bench_add_prompt(bench_test *rows, uint32_t n_modes, uint32_t i_mode, const char *name,
                         const td_sequence_info *info)
{
    bench_test *t = &rows[td_bench_find_prompt(name) * n_modes + i_mode];
    t->n_tokens = info->n_tokens;
    t->n_untimed = 1;
    t->n_prompt_tokens = info->n_prompt;
    t->n_drafted += info->n_drafted;
    t->n_accepted += info->n_accepted;
    t->n_rounds += info->n_rounds;
    if (info->n_tokens > 1)
        t->seconds.values[t->seconds.n++] =
            (double)(info->finished_us - info->first_token_us) * 1e-6;
}

uint32_t td_bench_sum_prompts(bench_test *rows, uint32_t n_modes)
{
    bench_test *all = &rows[TD_COUNT(prompts) * n_modes];
    for (uint32_t i = 0; i < TD_COUNT(prompts) * n_modes; i++) {
        const bench_test *t = &rows[i];
        bench_test *sum = &all[i % n_modes];
        sum->n_tokens += t->n_tokens;
        sum->n_untimed += t->n_untimed;
        sum->n_prompt_tokens += t->n_prompt_tokens;
        sum->n_drafted += t->n_drafted;
        sum->n_accepted += t->n_accepted;
        sum->n_rounds += t->n_rounds;
        sum->seconds.n = td_max_u32(sum->seconds.n, t->seconds.n);
        for (uint32_t r = 0; r < t->seconds.n; r++)
            sum->seconds.values[r] += t->seconds.values[r];
    }
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < (TD_COUNT(prompts) + 1) * n_modes; i++) {
        const bench_test *plain = &rows[i / n_modes * n_modes];
        bench_test *t = &rows[i];
        for (uint32_t r = 0; r < t->seconds.n && r < plain->seconds.n; r++)
            t->speedups.values[t->speedups.n++] = plain->seconds.values[r] / t->seconds.values[r];
    }
    for (uint32_t i = 0; i < (TD_COUNT(prompts) + 1) * n_modes; i++)
        if (rows[i].n_rounds)
            rows[n_rows++] = rows[i];
    return n_rows;
}
