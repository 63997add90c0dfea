#include "cli/plan.h"
bool plan_hardware(const char *path, bool is_json, td_err *err)
{
    (void)is_json;
    return td_err_set(err, TD_E_USAGE, "%s", path);
}
