/* columns.c - values of features repeated for the columns of a table. */
#include <string.h>

#include "job.h"

int fbn_more_columns(const struct fbn_plan *plan) { return plan->layout == FBN_ROWS && plan->width != plan->c; }

#define REPEAT(type)                                                             \
    for (int64_t f = first; f < end; f++) {                                      \
        int64_t last = (f + 1) * s < limit ? (f + 1) * s : limit;                \
        for (int64_t j = f * s; j < last; j++)                                   \
            ((type *)to)[j] = ((const type *)from)[f];                           \
    }

/* The columns below `limit` of the features [first, end), once. */
static void spread_once(char *to, const char *from, int64_t size, int64_t s, int64_t first, int64_t end, int64_t limit)
{
    if (s == 1) {
        int64_t last = end < limit ? end : limit;
        if (first < last)
            memcpy(to + first * size, from + first * size, (size_t)((last - first) * size));
    } else if (size == (int64_t)sizeof(float)) {
        REPEAT(float)
    } else {
        REPEAT(double)
    }
}

void fbn_spread(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t count, int64_t first,
                int64_t end)
{
    int64_t period = plan->c * plan->s;
    for (int64_t j = 0; j < count; j += period)
        spread_once((char *)columns + j * size, value, size, plan->s, first, end, count - j < period ? count - j : period);
}
