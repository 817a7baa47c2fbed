/* columns.c - values of features repeated for the columns of a table. */
#include <string.h>

#include "job.h"

int fbn_more_columns(const struct fbn_plan *plan) { return plan->layout == FBN_ROWS && plan->width != plan->c; }

static void repeat(char *to, const char *value, int64_t size, int64_t times)
{
    for (int64_t i = 0; i < times; i++)
        memcpy(to + i * size, value, (size_t)size);
}

void fbn_spread(const struct fbn_plan *plan, int64_t size, const void *value, void *columns, int64_t first, int64_t end)
{
    const char *from = value;
    char *to = columns;
    int64_t period = plan->c * plan->s;
    for (int64_t k = 0; k < plan->fold; k++) {
        char *row = to + k * period * size;
        if (plan->s == 1)
            memcpy(row + first * size, from + first * size, (size_t)((end - first) * size));
        else
            for (int64_t f = first; f < end; f++)
                repeat(row + f * plan->s * size, from + f * size, size, plan->s);
    }
}
