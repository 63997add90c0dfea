/* Numbers in order, the smallest first. None is NaN. Any thread. */
#ifndef TD_BASE_ORDER_H
#define TD_BASE_ORDER_H

#include <stdlib.h>

static inline int td_order_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline int td_order_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static inline void td_sort_doubles(double *values, size_t n)
{
    qsort(values, n, sizeof *values, td_order_doubles);
}

static inline void td_sort_floats(float *values, size_t n)
{
    qsort(values, n, sizeof *values, td_order_floats);
}

#endif
