#include "cli/simple.h"

#include "base/io.h"
#include "base/mem.h"
#include "base/text.h"

#include <string.h>

#define TOKENS_FILE_MAX (64u << 20) /* bytes */

/* Separators between ids; brackets so that a JSON list reads as well. */
static bool is_separator(char c) { return c && strchr(", \t\r\n[]", c); }

static bool parse(const char *text, size_t n_bytes, uint32_t n_vocab, uint32_t *ids, size_t *n_ids,
                  td_err *err)
{
    for (size_t i = 0; i < n_bytes;) {
        if (is_separator(text[i])) {
            i++;
            continue;
        }
        uint64_t id = 0;
        size_t begin = i;
        while (i < n_bytes && text[i] >= '0' && text[i] <= '9' && i - begin < 10)
            id = 10 * id + (uint64_t)(text[i++] - '0');
        bool is_number = i > begin && (i == n_bytes || is_separator(text[i]));
        if (!is_number || id >= n_vocab)
            return td_err_set(err, TD_E_DATA, "token %zu at byte %zu is %s; allowed: 0..%u", *n_ids,
                              begin, td_text_quote(text + begin, is_number ? i - begin : 1).text,
                              n_vocab - 1);
        ids[(*n_ids)++] = (uint32_t)id;
    }
    return true;
}

bool td_read_token_ids(const char *text, uint32_t n_vocab, uint32_t **ids, size_t *n_ids,
                       td_err *err)
{
    char *file = NULL;
    size_t n_bytes = strlen(text);
    if (text[0] == '@') {
        if (!td_io_read_file(text + 1, TOKENS_FILE_MAX, &file, &n_bytes, err))
            return false;
        text = file;
    }
    *n_ids = 0;
    *ids = td_alloc(n_bytes / 2 + 1, sizeof **ids, err); /* each id takes two bytes but the last */
    bool is_ok = *ids && parse(text, n_bytes, n_vocab, *ids, n_ids, err);
    if (is_ok && *n_ids == 0)
        is_ok = td_err_set(err, TD_E_DATA, "no token ids; give 1,2,3 or @FILE");
    if (!is_ok) {
        td_err_prepend(err, "--tokens");
        td_free(*ids);
        *ids = NULL;
    }
    td_free(file);
    return is_ok;
}

bool td_read_numbers(const char *flag, const char *text, uint32_t min, uint32_t max, uint32_t *out,
                     uint32_t n_max, uint32_t *n, td_err *err)
{
    *n = 0;
    bool is_ok = *text;
    for (const char *p = text; is_ok && *p;) {
        size_t n_bytes = strcspn(p, ",");
        bool is_last = !p[n_bytes];
        char one[16] = "";
        uint64_t value = 0;
        if (n_bytes < sizeof one)
            memcpy(one, p, n_bytes);
        is_ok = td_text_read_u64(one, &value) && value >= min && value <= max && *n < n_max &&
                (is_last || p[n_bytes + 1]);
        for (uint32_t i = 0; is_ok && i < *n; i++)
            is_ok = out[i] != value;
        if (is_ok)
            out[(*n)++] = (uint32_t)value;
        p += n_bytes + !is_last;
    }
    return is_ok || td_err_set(err, TD_E_USAGE,
                               "%s: %s; allowed: up to %u different numbers of %u..%u, as in 1,2,4",
                               flag, td_text_quote(text, strlen(text)).text, n_max, min, max);
}
