/* Verdicts: what `tandem check` found of a device, kept in the cache folder under what the device
 * is, its driver's version and the program's, so that a run does not go on with one that is known
 * to be wrong. A newer driver or program has no verdict yet. What cannot be kept or read is as if
 * it had never been found (a line in the log). Any thread. */
#ifndef TD_CHECK_VERDICT_H
#define TD_CHECK_VERDICT_H

#include "check/check.h"

/* Keeps what failed. is_whole: everything was tried, so that a device that passed is cleared of
 * what was found before. */
void td_verdict_keep(const td_check_report *report, bool is_whole);

#define TD_VERDICT_MAX (64u + TD_CHECK_REASON_MAX + 3u)

/* Whether the device has failed; then how: "mat_mul: 8B Q4_K: row 3 ...". */
bool td_verdict_find(const td_device_info *info, char found[TD_VERDICT_MAX]);
/* False where the device has failed: TD_E_UNAVAILABLE with what and how to go on. */
bool td_verdict_ask(const td_device_info *info, td_err *err);
/* The same of a SPEC, with or without a layer range (@a-b). A SPEC that means no device here is
 * somebody else's to refuse. */
bool td_verdict_ask_spec(const char *spec, td_err *err);

#endif
