/* tiles.h - passes with more to them than sums and one map: see tiles.c. */
#ifndef FBN_TILES_H
#define FBN_TILES_H

#include <stdint.h>

#include "job.h"

/* Runs of adjacent entries, at equal distances: rows of a table, or planes of features side by side. */
struct fbn_block {
    int64_t n, f, i;        /* of its first entry, from which an array's strides make an address */
    int64_t runs, len;
    int64_t next_n, next_c; /* from one run to the next; one of them is 0 */
    int64_t column;         /* of pivots and parameters: the first column, or of planes the first feature */
};

/* The weighted sums of a block: see fbn_planes_sums, fbn_rows_sums. Of planes v is not used. */
void fbn_tiles_sums(struct fbn_job *job, const struct fbn_block *block, double *u, double *v, int again);

/* dz of a block, into job->dz. */
void fbn_tiles_dz(struct fbn_job *job, const struct fbn_block *block);

/* The second pass over a block. */
void fbn_tiles_apply(struct fbn_job *job, const struct fbn_block *block);

#endif
