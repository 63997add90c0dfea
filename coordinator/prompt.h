/* Prompts before their first row: memory and shared prefixes. Private to coordinator/. */
#ifndef TD_COORDINATOR_PROMPT_H
#define TD_COORDINATOR_PROMPT_H

#include "coordinator/sequence.h"

/* Sequences that wait for memory and have it now begin, in order of adding. */
void td_prompts_admit(td_coordinator *c);
/* The sequence's OPEN: decides what its cache begins with. */
void td_prompt_open(td_coordinator *c, sequence *s, td_action *action);

#endif
