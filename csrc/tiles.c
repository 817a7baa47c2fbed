/* tiles.c - passes with more to them than sums and one map: weights, and activations where neither a kernel has them
 * (relu) nor a plain pass and a second look at what it wrote will do, see fuse_forward and fuse_backward in batchnorm.c.
 *
 * Such a pass takes the array in tiles that the first-level cache holds. What surrounds the map is done on a tile in
 * scratch memory by small kernels (kernels/tiles.inc, activations.inc), the map and the sums by the kernels of a plain
 * pass. So memory is read and written once, and no kernel is there twice. Sums are taken tile by tile, so tiles are cut by
 * shape alone.
 *
 *   z = (x - mean) * rstd * gamma + beta + residual      y = act(z)      dz = dy * act'(z), the residual's gradient
 *
 * Backward computes z again, or takes the y that was written for it, where its sign is all that act' needs. Where dz may be
 * stored, that is all that tiles do, and the sums and the map are those of a plain backward of dz. With weights w
 * the sums of d = x - pivot are those of d * w, and their squares' of d * (d * w); backward takes them of dz, unweighted,
 * and shares their means out by weight:
 *   dx = gamma * rstd * (dz - w * (mean_dy + (x - mean) * slope))
 */
#include "tiles.h"

#include <string.h>

enum { ROOM = 8192 /* bytes of an array's tile */, SUM_ROWS = 16 /* of a tile in which columns are summed */ };

struct rooms {
    _Alignas(64) char x[ROOM];
    char z[ROOM], d[ROOM], w[ROOM];
};

/* ---- cutting ---- */

struct sums_of_block {
    double *u, *v;
    int again;
};

typedef void tile_work(struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile,
                       const struct sums_of_block *sums);

static struct fbn_block tile_at(const struct fbn_block *block, int64_t run, int64_t runs, int64_t i, int64_t len)
{
    struct fbn_block tile = *block;
    tile.n += run * block->next_n;
    tile.f += run * block->next_c;
    tile.i += i;
    tile.runs = runs;
    tile.len = len;
    tile.column += block->next_c ? run : i;
    return tile;
}

/* Tiles of at least `least` runs, if the block has them, and of a multiple of that. */
static void each_tile(struct fbn_job *job, const struct fbn_block *block, int64_t least, tile_work *work,
                      const struct sums_of_block *sums)
{
    const int64_t entries = ROOM / job->lane_size;
    int64_t longest = fbn_least(block->len, entries / least);
    int64_t most = fbn_most(1, entries / fbn_most(1, longest) / least) * least;
    for (int64_t run = 0; run < block->runs; run += most)
        for (int64_t i = 0; i < block->len; i += longest) {
            struct fbn_block tile = tile_at(block, run, fbn_least(most, block->runs - run), i,
                                            fbn_least(longest, block->len - i));
            work(job, block, &tile, sums);
        }
}

/* ---- what a tile is made of ---- */

static int64_t distance(struct fbn_array a, const struct fbn_block *tile)
{
    return tile->next_n * a.stride_n + tile->next_c * a.stride_c;
}

static int is_gapless(struct fbn_array a, const struct fbn_block *tile)
{
    return tile->runs == 1 || distance(a, tile) == tile->len;
}

/* The tile's runs in an array; one long run where they follow each other without a gap. */
static void runs_in(struct fbn_array a, const struct fbn_block *tile, int64_t *runs, int64_t *len)
{
    int gapless = is_gapless(a, tile);
    *runs = gapless ? 1 : tile->runs;
    *len = gapless ? tile->runs * tile->len : tile->len;
}

/* The tile's entries of an array side by side, in the type of the arithmetic: where they are, or else in `room`. */
static void *gathered(const struct fbn_job *job, struct fbn_array a, const struct fbn_block *tile, char *room)
{
    char *first = fbn_at(a, job->size, tile->n, tile->f, tile->i);
    int64_t runs, len;
    runs_in(a, tile, &runs, &len);
    if (runs == 1 && job->typed == job->lanes)
        return first;
    for (int64_t k = 0; k < runs; k++)
        job->typed->to_lanes(first + k * distance(a, tile) * job->size, room + k * len * job->lane_size, len);
    return room;
}

static void put(const struct fbn_job *job, const char *lanes, struct fbn_array a, const struct fbn_block *tile, int stream)
{
    char *first = fbn_at(a, job->size, tile->n, tile->f, tile->i);
    int64_t runs, len;
    runs_in(a, tile, &runs, &len);
    for (int64_t k = 0; k < runs; k++)
        job->typed->from_lanes(lanes + k * len * job->lane_size, first + k * distance(a, tile) * job->size, len, stream);
}

static void params_at(const struct fbn_job *job, void *const columns[], int count, int64_t at, const void **par)
{
    for (int i = 0; i < count; i++)
        par[i] = (const char *)columns[i] + at * job->lane_size;
}

/* (x - a) * b + c, by column or feature. */
static void affine(const struct fbn_job *job, const struct fbn_block *tile, const void *x, void *y, void *a, void *b,
                   void *c)
{
    void *const columns[] = {a, b, c};
    const void *par[3];
    fbn_affine *map = tile->next_c ? job->lanes->planes_affine : job->lanes->rows_affine;
    params_at(job, columns, 3, tile->column, par);
    map(x, tile->len, y, tile->len, tile->runs, tile->len, par, tile->len, FBN_IN_CACHE);
}

static void gradient(const struct fbn_job *job, const struct fbn_block *tile, const void *x, const void *dz, void *dx)
{
    const void *par[4];
    fbn_gradient *map = tile->next_c ? job->lanes->planes_gradient : job->lanes->rows_gradient;
    params_at(job, job->par_columns, 4, tile->column, par);
    map(x, tile->len, dz, tile->len, dx, tile->len, tile->runs, tile->len, par, tile->len, FBN_IN_CACHE);
}

/* The weights of the entries of one run. A row may go on into the next one of the array, see apply.c. */
static void weights_of_run(const struct fbn_job *job, const struct fbn_block *tile, int64_t run, char *to)
{
    const int64_t s = job->sums_plan.s, row = job->sums_plan.c * s, size = job->lane_size;
    int64_t n = tile->n + run * tile->next_n, i = tile->i;
    if (tile->next_c) {
        memcpy(to, job->weights + (n * s + i) * size, (size_t)(tile->len * size));
        return;
    }
    for (int64_t j = 0; j < tile->len; j++, to += size) {
        int64_t entry = n + (i + j) / row, inner = (i + j) % row % s;
        memcpy(to, job->weights + (entry * s + inner) * size, (size_t)size);
    }
}

static const void *weights_of(const struct fbn_job *job, const struct fbn_block *tile, char *room)
{
    for (int64_t k = 0; k < tile->runs; k++)
        weights_of_run(job, tile, k, room + k * tile->len * job->lane_size);
    return room;
}

/* x, or what it was before y took its place, but for the affine map: act is invertible then. */
static void *x_of(const struct fbn_job *job, const struct fbn_block *tile, char *room)
{
    void *x = gathered(job, job->x, tile, room);
    if (!job->inverts)
        return x;
    job->lanes->activate(x, room, tile->runs * tile->len, job->activation, 1.0 / job->act_slope);
    return room;
}

static void add_residual(const struct fbn_job *job, const struct fbn_block *tile, void *z, char *room)
{
    if (job->residual.data)
        job->lanes->add(z, gathered(job, job->residual, tile, room), tile->runs * tile->len);
}

/* z, or what has its sign. */
static const void *z_of(const struct fbn_job *job, const struct fbn_block *tile, const void *x, struct rooms *rooms)
{
    if (job->inverts)
        return x;
    if (job->written.data)
        return gathered(job, job->written, tile, rooms->z);
    affine(job, tile, x, rooms->z, job->z_columns[0], job->z_columns[1], job->z_columns[2]);
    add_residual(job, tile, rooms->z, rooms->w);
    return rooms->z;
}

/* Into `dz`, side by side. */
static void dz_into(const struct fbn_job *job, const struct fbn_block *tile, const void *x, struct rooms *rooms, char *dz)
{
    const int64_t entries = tile->runs * tile->len;
    const void *dy = gathered(job, job->dy, tile, rooms->d);
    if (job->activation == FASTBN_IDENTITY)
        memmove(dz, dy, (size_t)(entries * job->lane_size));
    else
        job->lanes->activate_gradient(z_of(job, tile, x, rooms), dy, dz, entries, job->activation, job->act_slope);
    if (job->omits)
        job->lanes->omit(dz, x, entries);
}

/* In rooms->z. */
static char *dz_of(const struct fbn_job *job, const struct fbn_block *tile, const void *x, struct rooms *rooms)
{
    dz_into(job, tile, x, rooms, rooms->z);
    return rooms->z;
}

/* ---- the first pass ---- */

static void sum(struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile, const void *d,
                const void *t, void *pivots, const struct sums_of_block *sums)
{
    const void *const par[3] = {(const char *)pivots + tile->column * job->lane_size};
    int64_t at = tile->column - block->column, len = tile->len;
    if (tile->next_c) {
        fbn_planes_sums *kernel = sums->again || job->few ? job->lanes->planes_sums_wide : job->lanes->planes_sums;
        kernel(d, len, t, len, tile->runs, len, par, sums->u + at * FBN_ACCUMULATORS);
    } else {
        fbn_rows_sums *kernel = sums->again || job->few ? job->lanes->rows_sums_wide : job->lanes->rows_sums;
        kernel(d, len, t, len, tile->runs, len, par, sums->u + at, sums->v + at,
               job->sums_plan.band_dy, 0);
    }
}

/* Weighted sums of few entries: d and d * w would be rounded to float32 before the kernels see them. */
static void sum_few(const struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile,
                    const float *x, const float *w, const struct sums_of_block *sums)
{
    const float *pivots = (const float *)job->pivot_columns + tile->column;
    const int64_t at = tile->column - block->column;
    for (int64_t run = 0; run < tile->runs; run++)
        for (int64_t i = 0; i < tile->len; i++, x++, w++) {
            int64_t column = tile->next_c ? run : i, to = (at + column) * (tile->next_c ? FBN_ACCUMULATORS : 1);
            double *v = tile->next_c ? sums->u + to + FBN_ACCUMULATORS / 2 : sums->v + to;
            int counts = (*w != 0) & (!job->omits | (*x == *x));
            double d = counts ? (double)*x - (double)pivots[column] : 0.0, t = counts ? d * (double)*w : 0.0;
            sums->u[to] += t;
            *v += d * t;
        }
}

static void sum_tile(struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile,
                     const struct sums_of_block *sums)
{
    struct rooms rooms;
    const int64_t entries = tile->runs * tile->len;
    const void *x = x_of(job, tile, rooms.x);
    char *dz = job->dy.data ? dz_of(job, tile, x, &rooms) : NULL;
    if (!job->weights) {
        sum(job, block, tile, x, dz, job->pivot_columns, sums);
        return;
    }
    const void *w = weights_of(job, tile, rooms.w);
    if (job->few) {
        sum_few(job, block, tile, x, w, sums);
        return;
    }
    affine(job, tile, x, rooms.d, job->pivot_columns, job->constant[FBN_ONE], job->constant[FBN_MINUS_ZERO]);
    if (dz)
        job->lanes->hide(rooms.d, dz, w, x, entries, job->omits);
    else
        job->lanes->weigh(rooms.d, w, x, rooms.z, entries, job->omits);
    sum(job, block, tile, rooms.d, rooms.z, job->constant[FBN_ZERO], sums);
}

void fbn_tiles_sums(struct fbn_job *job, const struct fbn_block *block, double *u, double *v, int again)
{
    const struct sums_of_block sums = {u, v, again};
    each_tile(job, block, block->next_c ? 1 : SUM_ROWS, sum_tile, &sums);
}

/* ---- dz alone ---- */

static void store_dz(struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile,
                     const struct sums_of_block *sums)
{
    struct rooms rooms;
    (void)block, (void)sums;
    const void *x = job->written.data ? NULL : gathered(job, job->x, tile, rooms.x);
    if (job->typed == job->lanes && is_gapless(job->dz, tile))
        dz_into(job, tile, x, &rooms, fbn_at(job->dz, job->size, tile->n, tile->f, tile->i));
    else
        put(job, dz_of(job, tile, x, &rooms), job->dz, tile, 0);
}

void fbn_tiles_dz(struct fbn_job *job, const struct fbn_block *block) { each_tile(job, block, 1, store_dz, NULL); }

/* ---- the second pass ---- */

static void forward_tile(struct fbn_job *job, const struct fbn_block *tile)
{
    struct rooms rooms;
    const void *x = gathered(job, job->in, tile, rooms.x);
    affine(job, tile, x, rooms.z, job->par_columns[0], job->par_columns[1], job->par_columns[2]);
    add_residual(job, tile, rooms.z, rooms.x);
    if (job->activation != FASTBN_IDENTITY)
        job->lanes->activate(rooms.z, rooms.z, tile->runs * tile->len, job->activation, job->act_slope);
    put(job, rooms.z, job->y, tile, job->way == FBN_STREAM);
}

static void weighted_gradient(const struct fbn_job *job, const struct fbn_block *tile, const void *x, const void *dz,
                              struct rooms *rooms)
{
    void *const *par = job->par_columns;
    const void *w = weights_of(job, tile, rooms->w);
    affine(job, tile, x, rooms->d, par[0], par[2], par[1]);
    job->lanes->subtract_weighted(rooms->d, dz, w, tile->runs * tile->len);
    affine(job, tile, rooms->d, rooms->d, job->constant[FBN_ZERO], par[3], job->constant[FBN_MINUS_ZERO]);
    if (job->omits)
        job->lanes->omit(rooms->d, x, tile->runs * tile->len);
}

static void backward_tile(struct fbn_job *job, const struct fbn_block *tile)
{
    struct rooms rooms;
    const void *x = job->x.data ? x_of(job, tile, rooms.x) : NULL;
    const char *dz = dz_of(job, tile, x, &rooms);
    if (job->dresidual.data)
        put(job, dz, job->dresidual, tile, job->way == FBN_STREAM);
    if (!job->y.data)
        return;
    if (!job->gradient)
        affine(job, tile, dz, rooms.d, job->par_columns[0], job->par_columns[1], job->par_columns[2]);
    else if (job->weights)
        weighted_gradient(job, tile, x, dz, &rooms);
    else
        gradient(job, tile, x, dz, rooms.d);
    put(job, rooms.d, job->y, tile, job->way == FBN_STREAM);
}

static void apply_tile(struct fbn_job *job, const struct fbn_block *block, const struct fbn_block *tile,
                       const struct sums_of_block *sums)
{
    (void)block, (void)sums;
    if (job->dy.data)
        backward_tile(job, tile);
    else
        forward_tile(job, tile);
}

void fbn_tiles_apply(struct fbn_job *job, const struct fbn_block *block) { each_tile(job, block, 1, apply_tile, NULL); }
