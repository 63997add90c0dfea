/* The keys of this user, in files: pairs of our own, and the public keys of others.
 *
 *   NAME.key   a pair of our own: the lines "public KEY" and "secret KEY"
 *   NAME.pub   somebody's public key: whoever holds its secret half is let in by our workers, and
 *              a worker that is named NAME must hold it
 *
 * A KEY is 32 bytes in Z85 (ZeroMQ RFC 32): 40 printable characters, none of them a single quote.
 * The folder is $TANDEM_KEYS_DIR, else $XDG_CONFIG_HOME/tandem/keys, else ~/.config/tandem/keys. It
 * belongs to us with mode 0700 and each file with 0600; what does not is refused, not mended. The
 * list is what lies in the folder at the moment: a new file lets a key in, a removed one no more.
 *
 * Errors: TD_E_USAGE for names, keys and files that are not there or there already; TD_E_DATA for a
 * file that is malformed or open to others; TD_E_IO. Messages never show a secret. Any thread. */
#ifndef TD_TRANSPORT_KEYS_H
#define TD_TRANSPORT_KEYS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TD_KEY_TEXT     41   /* bytes of a key's text with the terminating 0 */
#define TD_KEY_NAME_MAX 64   /* bytes of a name: letters, digits, '.', '_', '-' */
#define TD_KEYS_MAX     256u /* names in the folder */

typedef struct {
    char public_key[TD_KEY_TEXT], secret[TD_KEY_TEXT];
} td_key_pair;

typedef struct {
    char name[TD_KEY_NAME_MAX + 1];
    bool is_own;     /* NAME.key is there */
    bool is_allowed; /* NAME.pub is there */
} td_key_name;

/* Is it a public key, in a form and of a kind that is accepted? Those printed in manuals are not:
 * everybody has their secret halves. */
bool td_key_check(const char *key, td_err *err);

/* Makes a pair; the folder too where it is missing. A name that is there stays as it is. */
bool td_keys_new(const char *name, char public_key[TD_KEY_TEXT], td_err *err);

/* Lets a public key in. Once more under the same name: nothing to do, or an error if it is another
 * key. */
bool td_keys_allow(const char *name, const char *key, td_err *err);

/* A pair of our own; NULL: the only one there is. To be wiped after use (td_key_wipe). */
bool td_keys_read_own(const char *name, td_key_pair *pair, td_err *err);
void td_key_wipe(td_key_pair *pair);

/* The public key behind a name, somebody's before our own, or in a file, whose path has a '/'; or
 * the key itself behind a '='. */
bool td_keys_read_public(const char *name_or_file, char key[TD_KEY_TEXT], td_err *err);

/* Every name in the folder, sorted; none where it is missing. */
bool td_keys_list(td_key_name names[TD_KEYS_MAX], uint32_t *n_names, td_err *err);

/* Is that key let in now, and by which name? Files and folders that are open to others let nobody
 * in. */
bool td_keys_is_allowed(const char *key, char name[TD_KEY_NAME_MAX + 1]);

#endif
