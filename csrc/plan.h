/* plan.h - from a shape to the way it is cut. Nothing here knows of threads: equal shapes are cut alike everywhere,
 * which is what makes the bits equal.
 */
#ifndef FBN_PLAN_H
#define FBN_PLAN_H

#include <stdint.h>

#include "fastbn.h"
#include "kernels.h"

static inline int64_t fbn_min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t fbn_max(int64_t a, int64_t b) { return a > b ? a : b; }

enum fbn_layout {
    FBN_PLANES, /* a feature is n runs of s adjacent entries */
    FBN_ROWS    /* a table: each column belongs to one feature */
};

/*
 * Rows. The table has `rows` rows of `width` columns, and a short last one of `rest` columns. Two tricks make it wide:
 *   few columns  `fold` rows of the array make one row of the table, so that C = 3 fills vectors as C = 512 does. For
 *                the second pass it is then whole vectors; for sums it may end within one;
 *   small s      (n, c, s) with s below 64 is a table of c * s columns.
 * Column j belongs to feature (j % (c * s)) / s. Both need a packed array.
 * A chunk is `chunk` rows, the last one those that are left, and is summed in bands of `band` rows, with dy of `band_dy`.
 *
 * Planes. A plane of s entries is cut into `pieces` pieces of `piece` entries. A chunk is `chunk` pieces, counted
 * through the planes of one feature.
 *
 * The sums of a chunk are stored by its place; chunks are added in order.
 */
struct fbn_plan {
    enum fbn_layout layout;
    int64_t n, c, s;
    int64_t fold, width, rows, tail;
    int band, band_dy;
    int64_t run, runs;
    int64_t chunk, chunks;
    int64_t grain; /* features that only go together, counted from 0; c where all do */
};

/* packed: stride_c == s and stride_n == c * s. */
struct fbn_plan fbn_plan_sums(int64_t n, int64_t c, int64_t s, int packed);

/* The same for a second pass, which has no sums, so that its cut decides no bits. */
struct fbn_plan fbn_plan_map(int64_t n, int64_t c, int64_t s, int packed);

/* Doubles of storage that the sums of a chunk of a table take: width sums u, and as many v from half of it on. */
int64_t fbn_plan_chunk_sums(const struct fbn_plan *plan);

/* Doubles of storage that the sums of all chunks take. */
int64_t fbn_plan_partials(const struct fbn_plan *plan);

/* The entries of a feature, counted through its runs of s, that are the pivot's samples; how many they are. */
int fbn_plan_samples(const struct fbn_plan *plan, int64_t entry[FBN_PIVOT_SAMPLES]);

#endif
