/* Clocks (clocks.h). Sources: the kernel's documentation of amdgpu's pm_sysfs interface, of cpufreq
 * and of PCI devices in sysfs. */
#include "check/clocks.h"

#include "base/check.h"
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 128

/* The first line of a file that ends as `suffix` (NULL: any), without its end; "" where there is
 * none. */
static void read_line(const char *path, const char *suffix, char *out, size_t n_out)
{
    char line[LINE_BYTES];
    FILE *f = fopen(path, "re");
    out[0] = 0;
    while (f && !out[0] && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\r\n")] = 0;
        size_t n = strlen(line), n_suffix = suffix ? strlen(suffix) : 0;
        if (n > n_suffix && (!suffix || !strcmp(line + n - n_suffix, suffix)))
            snprintf(out, n_out, "%.*s", (int)(n_out - 1), line);
    }
    if (f)
        fclose(f);
    td_text_make_printable(out);
}

/* "1: 800Mhz *" is the clock now, the last line the highest. */
static void read_clock(const char *folder, const char *name, char *now, char *most, size_t n)
{
    char path[512], line[LINE_BYTES], last[LINE_BYTES] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    read_line(path, " *", line, sizeof line);
    const char *colon = strchr(line, ':');
    if (colon)
        snprintf(now, n, "%.*s", (int)strcspn(colon + 2, " "), colon + 1 + (colon[1] == ' '));
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        memcpy(last, line, sizeof last);
    if (f)
        fclose(f);
    colon = strchr(last, ':');
    if (colon && most)
        snprintf(most, n, "%.*s", (int)strcspn(colon + 2, " \n"), colon + 1 + (colon[1] == ' '));
}

static void read_link(const char *folder, const char *which, char *out, size_t n)
{
    char path[512], speed[32], width[16];
    snprintf(path, sizeof path, "%s/%s_link_speed", folder, which);
    read_line(path, NULL, speed, sizeof speed);
    snprintf(path, sizeof path, "%s/%s_link_width", folder, which);
    read_line(path, NULL, width, sizeof width);
    if (speed[0] && width[0])
        snprintf(out, n, "%s x%s", speed, width);
}

static bool is_one_of(const char *text, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(text, list[i]))
            return true;
    return false;
}

void td_clocks_read(const td_device_info *info, td_clocks *out)
{
    static const char *const slow_levels[] = {"low", "profile_min_sclk", "profile_min_mclk",
                                              "profile_standard"};
    static const char *const slow_governors[] = {"powersave", "conservative"};
    const char *root = getenv("TD_SYSFS");
    char folder[384], path[512];
    *out = (td_clocks){.level = ""};
    root = root ? root : "/sys";
    if (info->kind == TD_DEVICE_HOST) {
        snprintf(path, sizeof path, "%.300s/devices/system/cpu/cpu0/cpufreq/scaling_governor",
                 root);
        read_line(path, NULL, out->governor, sizeof out->governor);
        if (is_one_of(out->governor, slow_governors, TD_COUNT(slow_governors)))
            snprintf(out->hint, sizeof out->hint,
                     "the CPUs' governor is %s, which may cost speed: cpupower frequency-set -g "
                     "performance",
                     out->governor);
        return;
    }
    if (!info->pci[0])
        return;
    snprintf(folder, sizeof folder, "%.300s/bus/pci/devices/%s", root, info->pci);
    snprintf(path, sizeof path, "%s/power_dpm_force_performance_level", folder);
    read_line(path, NULL, out->level, sizeof out->level);
    read_clock(folder, "pp_dpm_sclk", out->core, out->core_max, sizeof out->core);
    read_clock(folder, "pp_dpm_mclk", out->memory, NULL, sizeof out->memory);
    read_link(folder, "current", out->link, sizeof out->link);
    read_link(folder, "max", out->link_max, sizeof out->link_max);
    if (is_one_of(out->level, slow_levels, TD_COUNT(slow_levels)))
        snprintf(out->hint, sizeof out->hint,
                 "power_dpm_force_performance_level is %s, which costs speed: echo auto (or high) > "
                 "%s as root",
                 out->level, "/sys/bus/pci/devices/.../power_dpm_force_performance_level");
    else if (!strcmp(out->level, "auto"))
        snprintf(out->hint, sizeof out->hint,
                 "power_dpm_force_performance_level is auto: clocks rise late under short work; "
                 "high may be faster");
}
