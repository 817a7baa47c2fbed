/* plan.h - from a shape to the way it is cut. Nothing here knows of threads: equal shapes are cut alike everywhere, which
 * is what makes the bits equal.
 */
#ifndef FBN_PLAN_H
#define FBN_PLAN_H

#include <stdint.h>

#include "fastbn.h"
#include "kernels.h"

static inline int64_t fbn_min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t fbn_max(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t fbn_divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum fbn_layout {
    FBN_PLANES, /* a feature is n planes of s adjacent entries */
    FBN_ROWS    /* a table: each column belongs to one feature */
};

/*
 * Rows. The table has `rows` rows of `width` columns and a short last row of `tail` columns. Column j belongs to feature
 * (j % (c * s)) / s. A packed array can be made wider in two ways:
 *   few columns  `fold` rows of the array make one row of the table, so that C = 3 fills vectors as C = 512 does. The map
 *                wants whole vectors; sums may end within one;
 *   small s      (n, c, s) with s below 64 is a table of c * s columns.
 * A chunk is `chunk` rows, the last one those that are left. It is summed in bands of `band` rows, or of `band_dy` where
 * there is a dy.
 *
 * Planes. A plane of s entries is cut into `runs` runs of `run` entries. A chunk is `chunk` runs, counted through the
 * planes of one feature.
 *
 * The sums of a chunk are stored at a place that its number decides, and chunks are added in the order of their numbers.
 * Features go to threads in multiples of `grain`, which is c where all of them must stay together.
 */
struct fbn_plan {
    enum fbn_layout layout;
    int64_t n, c, s;
    int64_t fold, width, rows, tail;
    int band, band_dy;
    int64_t run, runs;
    int64_t chunk, chunks;
    int64_t grain;
};

/* packed: stride_c == s and stride_n == c * s. */
struct fbn_plan fbn_plan_sums(int64_t n, int64_t c, int64_t s, int packed);

/* The same for a map. It has no sums, so its plan decides no bits. */
struct fbn_plan fbn_plan_map(int64_t n, int64_t c, int64_t s, int packed);

/* The doubles that the sums of a chunk of a table take: width sums u, and as many sums v from half of them on. */
int64_t fbn_plan_chunk_sums(const struct fbn_plan *plan);

/* The doubles that the sums of all chunks take. */
int64_t fbn_plan_partials(const struct fbn_plan *plan);

/* Chooses the entries of a feature, counted through its planes, that are the samples of the pivot; returns how many. */
int fbn_plan_samples(const struct fbn_plan *plan, int64_t entry[FBN_PIVOT_SAMPLES]);

/* Runs of adjacent entries, at equal distances: rows of a table, or planes of features side by side. */
struct fbn_runs {
    int64_t n, f, i;        /* of the first entry, from which an array's strides make an address */
    int64_t count, len;
    int64_t next_n, next_c; /* from one run to the next; one of them is 0 */
    int64_t column;         /* of pivots and parameters: the first column, or the first feature of planes */
};

/* `count` of these runs from run `run` on, and of each the `len` entries from entry i on. */
static inline struct fbn_runs fbn_part_of_runs(const struct fbn_runs *runs, int64_t run, int64_t count, int64_t i,
                                               int64_t len)
{
    struct fbn_runs part = *runs;
    part.n += run * runs->next_n;
    part.f += run * runs->next_c;
    part.i += i;
    part.count = count;
    part.len = len;
    part.column += runs->next_c ? run : i;
    return part;
}

/* The runs of all planes, or the rows, in the order of memory. */
int64_t fbn_plan_runs(const struct fbn_plan *plan);

/* The longest group of planes' runs that begins with run q, ends before run `end` and has equal distances. */
struct fbn_runs fbn_plan_group(const struct fbn_plan *plan, int64_t q, int64_t end);

#endif
