#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

_Noreturn void td_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "tandem: bug: %s:%d: %s does not hold; please report it\n", file, line,
            condition);
    abort();
}
