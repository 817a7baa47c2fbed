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
#include "call.h"

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

typedef void tile_work(struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile,
                       const struct sums_of_block *sums);

static struct fbn_runs tile_at(const struct fbn_runs *block, int64_t run, int64_t runs, int64_t i, int64_t len)
{
    struct fbn_runs tile = *block;
    tile.n += run * block->next_n;
    tile.f += run * block->next_c;
    tile.i += i;
    tile.count = runs;
    tile.len = len;
    tile.column += block->next_c ? run : i;
    return tile;
}

/* Tiles of at least `least` runs, if the block has them, and of a multiple of that. */
static void each_tile(struct fbn_call *call, const struct fbn_runs *block, int64_t least, tile_work *work,
                      const struct sums_of_block *sums)
{
    const int64_t entries = ROOM / call->lane_size;
    int64_t longest = fbn_min(block->len, entries / least);
    int64_t most = fbn_max(1, entries / fbn_max(1, longest) / least) * least;
    for (int64_t run = 0; run < block->count; run += most)
        for (int64_t i = 0; i < block->len; i += longest) {
            struct fbn_runs tile = tile_at(block, run, fbn_min(most, block->count - run), i,
                                            fbn_min(longest, block->len - i));
            work(call, block, &tile, sums);
        }
}

/* ---- what a tile is made of ---- */

static int64_t distance(struct fbn_array a, const struct fbn_runs *tile)
{
    return tile->next_n * a.stride_n + tile->next_c * a.stride_c;
}

static int is_gapless(struct fbn_array a, const struct fbn_runs *tile)
{
    return tile->count == 1 || distance(a, tile) == tile->len;
}

/* The tile's runs in an array; one long run where they follow each other without a gap. */
static void runs_in(struct fbn_array a, const struct fbn_runs *tile, int64_t *runs, int64_t *len)
{
    int gapless = is_gapless(a, tile);
    *runs = gapless ? 1 : tile->count;
    *len = gapless ? tile->count * tile->len : tile->len;
}

/* The tile's entries of an array side by side, in the type of the arithmetic: where they are, or else in `room`. */
static void *gathered(const struct fbn_call *call, struct fbn_array a, const struct fbn_runs *tile, char *room)
{
    char *first = fbn_at(a, call->size, tile->n, tile->f, tile->i);
    int64_t runs, len;
    runs_in(a, tile, &runs, &len);
    if (runs == 1 && call->typed == call->lanes)
        return first;
    for (int64_t k = 0; k < runs; k++)
        call->typed->to_lanes(first + k * distance(a, tile) * call->size, room + k * len * call->lane_size, len);
    return room;
}

static void put(const struct fbn_call *call, const char *lanes, struct fbn_array a, const struct fbn_runs *tile, int stream)
{
    char *first = fbn_at(a, call->size, tile->n, tile->f, tile->i);
    int64_t runs, len;
    runs_in(a, tile, &runs, &len);
    for (int64_t k = 0; k < runs; k++)
        call->typed->from_lanes(lanes + k * len * call->lane_size, first + k * distance(a, tile) * call->size, len, stream);
}

static void params_at(const struct fbn_call *call, void *const columns[], int count, int64_t at, const void **par)
{
    for (int i = 0; i < count; i++)
        par[i] = (const char *)columns[i] + at * call->lane_size;
}

/* (x - a) * b + c, by column or feature. */
static void affine(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, void *y, void *a, void *b,
                   void *c)
{
    void *const columns[] = {a, b, c};
    const void *par[3];
    fbn_affine *map = tile->next_c ? call->lanes->map_planes_affine : call->lanes->map_rows_affine;
    params_at(call, columns, 3, tile->column, par);
    map(x, tile->len, y, tile->len, tile->count, tile->len, par, tile->len, FBN_STORE_CACHED);
}

static void gradient(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, const void *dz, void *dx)
{
    const void *par[4];
    fbn_gradient *map = tile->next_c ? call->lanes->map_planes_gradient : call->lanes->map_rows_gradient;
    params_at(call, call->par_columns, 4, tile->column, par);
    map(x, tile->len, dz, tile->len, dx, tile->len, tile->count, tile->len, par, tile->len, FBN_STORE_CACHED);
}

/* The weights of the entries of one run. A row may go on into the next one of the array, see apply.c. */
static void weights_of_run(const struct fbn_call *call, const struct fbn_runs *tile, int64_t run, char *to)
{
    const int64_t s = call->sums_plan.s, row = call->sums_plan.c * s, size = call->lane_size;
    int64_t n = tile->n + run * tile->next_n, i = tile->i;
    if (tile->next_c) {
        memcpy(to, call->weights + (n * s + i) * size, (size_t)(tile->len * size));
        return;
    }
    for (int64_t j = 0; j < tile->len; j++, to += size) {
        int64_t entry = n + (i + j) / row, inner = (i + j) % row % s;
        memcpy(to, call->weights + (entry * s + inner) * size, (size_t)size);
    }
}

static const void *weights_of(const struct fbn_call *call, const struct fbn_runs *tile, char *room)
{
    for (int64_t k = 0; k < tile->count; k++)
        weights_of_run(call, tile, k, room + k * tile->len * call->lane_size);
    return room;
}

/* x, or what it was before y took its place, but for the affine map: act is invertible then. */
static void *x_of(const struct fbn_call *call, const struct fbn_runs *tile, char *room)
{
    void *x = gathered(call, call->x, tile, room);
    if (!call->inverts)
        return x;
    call->lanes->activate(x, room, tile->count * tile->len, call->activation, 1.0 / call->act_slope);
    return room;
}

static void add_residual(const struct fbn_call *call, const struct fbn_runs *tile, void *z, char *room)
{
    if (call->residual.data)
        call->lanes->add(z, gathered(call, call->residual, tile, room), tile->count * tile->len);
}

/* z, or what has its sign. */
static const void *z_of(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms)
{
    if (call->inverts)
        return x;
    if (call->written.data)
        return gathered(call, call->written, tile, rooms->z);
    affine(call, tile, x, rooms->z, call->z_columns[0], call->z_columns[1], call->z_columns[2]);
    add_residual(call, tile, rooms->z, rooms->w);
    return rooms->z;
}

/* Into `dz`, side by side. */
static void dz_into(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms, char *dz)
{
    const int64_t entries = tile->count * tile->len;
    const void *dy = gathered(call, call->dy, tile, rooms->d);
    if (call->activation == FASTBN_IDENTITY)
        memmove(dz, dy, (size_t)(entries * call->lane_size));
    else
        call->lanes->activate_gradient(z_of(call, tile, x, rooms), dy, dz, entries, call->activation, call->act_slope);
    if (call->omits)
        call->lanes->omit(dz, x, entries);
}

/* In rooms->z. */
static char *dz_of(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms)
{
    dz_into(call, tile, x, rooms, rooms->z);
    return rooms->z;
}

/* ---- the first pass ---- */

static void sum(struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile, const void *d,
                const void *t, void *pivots, const struct sums_of_block *sums)
{
    const void *const par[3] = {(const char *)pivots + tile->column * call->lane_size};
    int64_t at = tile->column - block->column, len = tile->len;
    if (tile->next_c) {
        fbn_sum_planes *kernel = sums->again || call->few ? call->lanes->sum_planes_wide : call->lanes->sum_planes;
        kernel(d, len, t, len, tile->count, len, par, sums->u + at * FBN_ACCUMULATORS);
    } else {
        fbn_sum_rows *kernel = sums->again || call->few ? call->lanes->sum_rows_wide : call->lanes->sum_rows;
        kernel(d, len, t, len, tile->count, len, par, sums->u + at, sums->v + at,
               call->sums_plan.band_dy, 0);
    }
}

/* Weighted sums of few entries: d and d * w would be rounded to float32 before the kernels see them. */
static void sum_few(const struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile,
                    const float *x, const float *w, const struct sums_of_block *sums)
{
    const float *pivots = (const float *)call->pivot_columns + tile->column;
    const int64_t at = tile->column - block->column;
    for (int64_t run = 0; run < tile->count; run++)
        for (int64_t i = 0; i < tile->len; i++, x++, w++) {
            int64_t column = tile->next_c ? run : i, to = (at + column) * (tile->next_c ? FBN_ACCUMULATORS : 1);
            double *v = tile->next_c ? sums->u + to + FBN_ACCUMULATORS / 2 : sums->v + to;
            int counts = (*w != 0) & (!call->omits | (*x == *x));
            double d = counts ? (double)*x - (double)pivots[column] : 0.0, t = counts ? d * (double)*w : 0.0;
            sums->u[to] += t;
            *v += d * t;
        }
}

static void sum_tile(struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile,
                     const struct sums_of_block *sums)
{
    struct rooms rooms;
    const int64_t entries = tile->count * tile->len;
    const void *x = x_of(call, tile, rooms.x);
    char *dz = call->dy.data ? dz_of(call, tile, x, &rooms) : NULL;
    if (!call->weights) {
        sum(call, block, tile, x, dz, call->pivot_columns, sums);
        return;
    }
    const void *w = weights_of(call, tile, rooms.w);
    if (call->few) {
        sum_few(call, block, tile, x, w, sums);
        return;
    }
    affine(call, tile, x, rooms.d, call->pivot_columns, call->constant[FBN_ONE], call->constant[FBN_MINUS_ZERO]);
    if (dz)
        call->lanes->hide(rooms.d, dz, w, x, entries, call->omits);
    else
        call->lanes->weigh(rooms.d, w, x, rooms.z, entries, call->omits);
    sum(call, block, tile, rooms.d, rooms.z, call->constant[FBN_ZERO], sums);
}

void fbn_sum_tiles(struct fbn_call *call, const struct fbn_runs *block, double *u, double *v, int again)
{
    const struct sums_of_block sums = {u, v, again};
    each_tile(call, block, block->next_c ? 1 : SUM_ROWS, sum_tile, &sums);
}

/* ---- dz alone ---- */

static void store_dz(struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile,
                     const struct sums_of_block *sums)
{
    struct rooms rooms;
    (void)block, (void)sums;
    const void *x = call->written.data ? NULL : gathered(call, call->x, tile, rooms.x);
    if (call->typed == call->lanes && is_gapless(call->dz, tile))
        dz_into(call, tile, x, &rooms, fbn_at(call->dz, call->size, tile->n, tile->f, tile->i));
    else
        put(call, dz_of(call, tile, x, &rooms), call->dz, tile, 0);
}

void fbn_store_dz_tiles(struct fbn_call *call, const struct fbn_runs *block) { each_tile(call, block, 1, store_dz, NULL); }

/* ---- the second pass ---- */

static void forward_tile(struct fbn_call *call, const struct fbn_runs *tile)
{
    struct rooms rooms;
    const void *x = gathered(call, call->in, tile, rooms.x);
    affine(call, tile, x, rooms.z, call->par_columns[0], call->par_columns[1], call->par_columns[2]);
    add_residual(call, tile, rooms.z, rooms.x);
    if (call->activation != FASTBN_IDENTITY)
        call->lanes->activate(rooms.z, rooms.z, tile->count * tile->len, call->activation, call->act_slope);
    put(call, rooms.z, call->y, tile, call->policy == FBN_STORE_NON_TEMPORAL);
}

static void weighted_gradient(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, const void *dz,
                              struct rooms *rooms)
{
    void *const *par = call->par_columns;
    const void *w = weights_of(call, tile, rooms->w);
    affine(call, tile, x, rooms->d, par[0], par[2], par[1]);
    call->lanes->subtract_weighted(rooms->d, dz, w, tile->count * tile->len);
    affine(call, tile, rooms->d, rooms->d, call->constant[FBN_ZERO], par[3], call->constant[FBN_MINUS_ZERO]);
    if (call->omits)
        call->lanes->omit(rooms->d, x, tile->count * tile->len);
}

static void backward_tile(struct fbn_call *call, const struct fbn_runs *tile)
{
    struct rooms rooms;
    const void *x = call->x.data ? x_of(call, tile, rooms.x) : NULL;
    const char *dz = dz_of(call, tile, x, &rooms);
    if (call->dresidual.data)
        put(call, dz, call->dresidual, tile, call->policy == FBN_STORE_NON_TEMPORAL);
    if (!call->y.data)
        return;
    if (!call->gradient)
        affine(call, tile, dz, rooms.d, call->par_columns[0], call->par_columns[1], call->par_columns[2]);
    else if (call->weights)
        weighted_gradient(call, tile, x, dz, &rooms);
    else
        gradient(call, tile, x, dz, rooms.d);
    put(call, rooms.d, call->y, tile, call->policy == FBN_STORE_NON_TEMPORAL);
}

static void map_tile(struct fbn_call *call, const struct fbn_runs *block, const struct fbn_runs *tile,
                       const struct sums_of_block *sums)
{
    (void)block, (void)sums;
    if (call->dy.data)
        backward_tile(call, tile);
    else
        forward_tile(call, tile);
}

void fbn_map_tiles(struct fbn_call *call, const struct fbn_runs *block) { each_tile(call, block, 1, map_tile, NULL); }
