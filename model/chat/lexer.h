/* Tokens of a template. Private to model/chat/.
 *
 * The lexer is pulled: jinja_lex gives the next token, data between tags among them, with the
 * language's rules for white space around tags applied. */
#ifndef TD_MODEL_CHAT_LEXER_H
#define TD_MODEL_CHAT_LEXER_H

#include "base/err.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    TOKEN_END,
    TOKEN_DATA,
    TOKEN_BLOCK_BEGIN,
    TOKEN_BLOCK_END,
    TOKEN_PRINT_BEGIN,
    TOKEN_PRINT_END,
    TOKEN_NAME,
    TOKEN_INT,
    TOKEN_FLOAT,
    TOKEN_STRING,
    TOKEN_OPERATOR,
} jinja_token_kind;

#define JINJA_OP2(a, b) ((a) << 8 | (b)) /* an operator of two characters */

typedef struct {
    jinja_token_kind kind;
    uint32_t line, column; /* 1-based; columns in characters */
    int op;                /* of an operator: its character, or JINJA_OP2 */
    const char *text;      /* of data, names and strings: in the arena or the source */
    size_t n;
    int64_t integer;
    double real;
} jinja_token;

typedef struct {
    const char *source; /* [n], line breaks are \n, no line break at the end */
    size_t n, at;
    td_arena *arena;
    td_err *err;
    enum { LEX_DATA, LEX_BLOCK, LEX_PRINT } mode;
    bool is_line_starting; /* the last match ended in a line break */
    char brackets[256];    /* open ones, by their closing character */
    size_t n_brackets;
    uint32_t line, column;
    size_t line_at; /* the place that line and column are of */
} jinja_lexer;

bool jinja_lexer_begin(jinja_lexer *l, const char *text, size_t n, td_arena *arena, td_err *err);
bool jinja_lex(jinja_lexer *l, jinja_token *t);
/* Sets an error at the place of a token. False. */
bool jinja_lex_fail(td_err *err, uint32_t line, uint32_t column, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
