/* tiles.c - passes that do more than take sums, or than map: those with weights, and activations that neither a kernel has
 * (relu) nor a plain pass and a second look at what it wrote can do: see fuse_forward and fuse_backward in batchnorm.c.
 *
 * Such a pass takes the array in tiles that the first-level cache holds. What surrounds the map is done on a tile in
 * scratch memory by small kernels (kernels/elementwise.inc, activations.inc), the map and the sums by the kernels of a
 * plain pass. So memory is read and written once, and no kernel is there twice. Sums are taken tile by tile, so tiles are
 * cut by shape alone.
 *
 *   z = (x - mean) * rstd * gamma + beta + residual      y = act(z)      dz = dy * act'(z), the residual's gradient
 *
 * Backward computes z again, or takes the y that was written for it, where its sign is all that act' needs. Where dz may be
 * stored, that is all that tiles do, and the sums and the map are those of a plain backward of dz. With weights w the sums
 * of d = x - pivot are those of d * w, and the sums of squares those of d * (d * w). Backward takes the sums of dz without
 * weights and shares their means out by weight:
 *   dx = gamma * rstd * (dz - w * (mean_dy + (x - mean) * slope))
 */
#include <string.h>

#include "call.h"

enum {
    ROOM = 8192,  /* bytes of an array's tile */
    SUM_ROWS = 16 /* rows of a tile of which sums are taken: whole bands, as in sums.c */
};

struct rooms {
    _Alignas(64) char x[ROOM];
    char z[ROOM], d[ROOM], w[ROOM];
};

/* ---- cutting ---- */

/* Where sums of the runs go, from the first column or feature of these on. */
struct sums_of_runs {
    double *u, *v;
    int64_t column;
    int again;
};

typedef void tile_work(struct fbn_call *call, const struct fbn_runs *tile, const struct sums_of_runs *sums);

/* Tiles have a multiple of `step` runs, if there are as many. */
static void each_tile(struct fbn_call *call, const struct fbn_runs *runs, int64_t step, tile_work *work,
                      const struct sums_of_runs *sums)
{
    const int64_t entries = ROOM / call->lane_size;
    int64_t longest = fbn_min(runs->len, entries / step);
    int64_t most = fbn_max(1, entries / fbn_max(1, longest) / step) * step;
    for (int64_t run = 0; run < runs->count; run += most)
        for (int64_t i = 0; i < runs->len; i += longest) {
            struct fbn_runs tile = fbn_part_of_runs(runs, run, fbn_min(most, runs->count - run), i,
                                                    fbn_min(longest, runs->len - i));
            work(call, &tile, sums);
        }
}

/* ---- what a tile is made of ---- */

static int64_t entries_of(const struct fbn_runs *tile) { return tile->count * tile->len; }

static int is_gapless(struct fbn_array a, const struct fbn_runs *tile)
{
    return tile->count == 1 || fbn_run_distance(tile, a) == tile->len;
}

/* The tile's runs in an array. They are one long run where they follow each other without a gap. */
static void runs_in(struct fbn_array a, const struct fbn_runs *tile, int64_t *count, int64_t *len)
{
    int gapless = is_gapless(a, tile);
    *count = gapless ? 1 : tile->count;
    *len = gapless ? entries_of(tile) : tile->len;
}

/* The tile's entries of an array side by side, in the type of the arithmetic: where they are, or else in `room`. */
static void *gathered(const struct fbn_call *call, struct fbn_array a, const struct fbn_runs *tile, char *room)
{
    char *first = fbn_at(a, call->size, tile->n, tile->f, tile->i);
    int64_t count, len;
    runs_in(a, tile, &count, &len);
    if (count == 1 && call->typed == call->lanes)
        return first;
    for (int64_t k = 0; k < count; k++)
        call->typed->to_lanes(first + k * fbn_run_distance(tile, a) * call->size, room + k * len * call->lane_size, len);
    return room;
}

static void put(const struct fbn_call *call, const char *lanes, struct fbn_array a, const struct fbn_runs *tile,
                int stream)
{
    char *first = fbn_at(a, call->size, tile->n, tile->f, tile->i);
    int64_t count, len;
    runs_in(a, tile, &count, &len);
    for (int64_t k = 0; k < count; k++)
        call->typed->from_lanes(lanes + k * len * call->lane_size, first + k * fbn_run_distance(tile, a) * call->size, len,
                                stream);
}

static void put_result(const struct fbn_call *call, const char *lanes, struct fbn_array a, const struct fbn_runs *tile)
{
    put(call, lanes, a, tile, call->plan.policy == FBN_STORE_NON_TEMPORAL);
}

static void params_at(const struct fbn_call *call, void *const columns[], int count, int64_t at, const void **par)
{
    for (int i = 0; i < count; i++)
        par[i] = (const char *)columns[i] + at * call->lane_size;
}

/* y = (x - a) * b + c, by column or feature. */
static void affine(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, void *y, void *a, void *b,
                   void *c)
{
    void *const columns[] = {a, b, c};
    const void *par[3];
    fbn_map_one *map = tile->next_c ? call->lanes->map_planes.affine : call->lanes->map_rows.affine;
    params_at(call, columns, 3, tile->column, par);
    map(x, tile->len, y, tile->len, tile->count, tile->len, par, tile->len, FBN_STORE_CACHED);
}

static void gradient(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, const void *dz, void *dx)
{
    const void *par[4];
    fbn_map_two *map = tile->next_c ? call->lanes->map_planes.gradient : call->lanes->map_rows.gradient;
    params_at(call, call->scratch.par_columns, 4, tile->column, par);
    map(x, tile->len, dz, tile->len, dx, tile->len, tile->count, tile->len, par, tile->len, FBN_STORE_CACHED);
}

/* Copies the weights of the entries of one run. A row may go on into the next one of the array, see map.c. */
static void weights_of_run(const struct fbn_call *call, const struct fbn_runs *tile, int64_t run, char *to)
{
    const int64_t s = call->plan.sums.s, row = call->plan.sums.c * s, size = call->lane_size;
    int64_t n = tile->n + run * tile->next_n, i = tile->i;
    if (tile->next_c) {
        memcpy(to, call->given.weights + (n * s + i) * size, (size_t)(tile->len * size));
        return;
    }
    for (int64_t j = 0; j < tile->len; j++, to += size) {
        int64_t entry = n + (i + j) / row, inner = (i + j) % row % s;
        memcpy(to, call->given.weights + (entry * s + inner) * size, (size_t)size);
    }
}

static const void *weights_of(const struct fbn_call *call, const struct fbn_runs *tile, char *room)
{
    for (int64_t k = 0; k < tile->count; k++)
        weights_of_run(call, tile, k, room + k * tile->len * call->lane_size);
    return room;
}

/* x. Where y took its place, the activation is inverted, and this is what the affine map made of x. */
static void *x_of(const struct fbn_call *call, const struct fbn_runs *tile, char *room)
{
    void *x = gathered(call, call->given.x, tile, room);
    if (!call->given.inverts)
        return x;
    call->lanes->activate(x, room, entries_of(tile), call->given.activation, 1.0 / call->given.slope);
    return room;
}

static void add_residual(const struct fbn_call *call, const struct fbn_runs *tile, void *z, char *room)
{
    if (call->given.residual.data)
        call->lanes->add(z, gathered(call, call->given.residual, tile, room), entries_of(tile));
}

/* z, or what has its sign. */
static const void *z_of(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms)
{
    void *const *z = call->scratch.z_columns;
    if (call->given.inverts)
        return x;
    if (call->given.written.data)
        return gathered(call, call->given.written, tile, rooms->z);
    affine(call, tile, x, rooms->z, z[0], z[1], z[2]);
    add_residual(call, tile, rooms->z, rooms->w);
    return rooms->z;
}

/* Writes dz side by side. */
static void dz_into(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms,
                    char *dz)
{
    const int64_t entries = entries_of(tile);
    const void *dy = gathered(call, call->given.dy, tile, rooms->d);
    if (call->given.activation == FASTBN_IDENTITY)
        memmove(dz, dy, (size_t)(entries * call->lane_size));
    else
        call->lanes->activate_gradient(z_of(call, tile, x, rooms), dy, dz, entries, call->given.activation,
                                       call->given.slope);
    if (call->given.omits)
        call->lanes->omit(dz, x, entries);
}

/* dz, which is then in rooms->z. */
static char *dz_of(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, struct rooms *rooms)
{
    dz_into(call, tile, x, rooms, rooms->z);
    return rooms->z;
}

/* ---- the first pass ---- */

static void sum(struct fbn_call *call, const struct fbn_runs *tile, const void *d, const void *t, void *pivots,
                const struct sums_of_runs *sums)
{
    const struct fbn_typed *lanes = call->lanes;
    const void *const par[3] = {(const char *)pivots + tile->column * call->lane_size};
    int64_t at = tile->column - sums->column, len = tile->len;
    int wide = sums->again || call->plan.sums_in_double;
    if (tile->next_c) {
        fbn_sum_planes *kernel = wide ? lanes->sum_planes_wide : lanes->sum_planes;
        kernel(d, len, t, len, tile->count, len, par, sums->u + at * FBN_ACCUMULATORS);
    } else {
        fbn_sum_rows *kernel = wide ? lanes->sum_rows_wide : lanes->sum_rows;
        kernel(d, len, t, len, tile->count, len, par, sums->u + at, sums->v + at, call->plan.sums.band_dy, 0);
    }
}

/* Takes the weighted sums of few entries: kernels would see d and d * w rounded to float32. */
static void sum_few(const struct fbn_call *call, const struct fbn_runs *tile, const float *x, const float *w,
                    const struct sums_of_runs *sums)
{
    const float *pivots = (const float *)call->scratch.pivot_columns + tile->column;
    const int64_t at = tile->column - sums->column;
    for (int64_t run = 0; run < tile->count; run++)
        for (int64_t i = 0; i < tile->len; i++, x++, w++) {
            int64_t column = tile->next_c ? run : i, to = (at + column) * (tile->next_c ? FBN_ACCUMULATORS : 1);
            double *v = tile->next_c ? sums->u + to + FBN_ACCUMULATORS / 2 : sums->v + to;
            int counts = (*w != 0) & (!call->given.omits | (*x == *x));
            double d = counts ? (double)*x - (double)pivots[column] : 0.0, t = counts ? d * (double)*w : 0.0;
            sums->u[to] += t;
            *v += d * t;
        }
}

static void sum_weighted(struct fbn_call *call, const struct fbn_runs *tile, const void *x, const char *dz,
                         struct rooms *rooms, const struct sums_of_runs *sums)
{
    const int64_t entries = entries_of(tile);
    const void *w = weights_of(call, tile, rooms->w);
    void *const *constant = call->scratch.constant;
    if (call->plan.sums_in_double) {
        sum_few(call, tile, x, w, sums);
        return;
    }
    affine(call, tile, x, rooms->d, call->scratch.pivot_columns, constant[FBN_ONE], constant[FBN_MINUS_ZERO]);
    if (dz)
        call->lanes->hide(rooms->d, dz, w, x, entries, call->given.omits);
    else
        call->lanes->weigh(rooms->d, w, x, rooms->z, entries, call->given.omits);
    sum(call, tile, rooms->d, rooms->z, constant[FBN_ZERO], sums);
}

static void sum_tile(struct fbn_call *call, const struct fbn_runs *tile, const struct sums_of_runs *sums)
{
    struct rooms rooms;
    const void *x = x_of(call, tile, rooms.x);
    char *dz = call->given.dy.data ? dz_of(call, tile, x, &rooms) : NULL;
    if (call->given.weights)
        sum_weighted(call, tile, x, dz, &rooms, sums);
    else
        sum(call, tile, x, dz, call->scratch.pivot_columns, sums);
}

void fbn_sum_tiles(struct fbn_call *call, const struct fbn_runs *runs, double *u, double *v, int again)
{
    const struct sums_of_runs sums = {u, v, runs->column, again};
    each_tile(call, runs, runs->next_c ? 1 : SUM_ROWS, sum_tile, &sums);
}

/* ---- dz alone ---- */

static void store_dz(struct fbn_call *call, const struct fbn_runs *tile, const struct sums_of_runs *sums)
{
    struct rooms rooms;
    (void)sums;
    const void *x = call->given.written.data ? NULL : gathered(call, call->given.x, tile, rooms.x);
    const struct fbn_array dz = call->plan.dz;
    if (call->typed == call->lanes && is_gapless(dz, tile))
        dz_into(call, tile, x, &rooms, fbn_at(dz, call->size, tile->n, tile->f, tile->i));
    else
        put(call, dz_of(call, tile, x, &rooms), dz, tile, 0);
}

void fbn_store_dz_tiles(struct fbn_call *call, const struct fbn_runs *runs) { each_tile(call, runs, 1, store_dz, NULL); }

/* ---- the second pass ---- */

static void map_forward(struct fbn_call *call, const struct fbn_runs *tile)
{
    struct rooms rooms;
    void *const *par = call->scratch.par_columns;
    const void *x = gathered(call, call->plan.in, tile, rooms.x);
    affine(call, tile, x, rooms.z, par[0], par[1], par[2]);
    add_residual(call, tile, rooms.z, rooms.x);
    if (call->given.activation != FASTBN_IDENTITY)
        call->lanes->activate(rooms.z, rooms.z, entries_of(tile), call->given.activation, call->given.slope);
    put_result(call, rooms.z, call->given.y, tile);
}

static void weighted_gradient(const struct fbn_call *call, const struct fbn_runs *tile, const void *x, const void *dz,
                              struct rooms *rooms)
{
    void *const *par = call->scratch.par_columns, *const *constant = call->scratch.constant;
    const void *w = weights_of(call, tile, rooms->w);
    affine(call, tile, x, rooms->d, par[0], par[2], par[1]);
    call->lanes->subtract_weighted(rooms->d, dz, w, entries_of(tile));
    affine(call, tile, rooms->d, rooms->d, constant[FBN_ZERO], par[3], constant[FBN_MINUS_ZERO]);
    if (call->given.omits)
        call->lanes->omit(rooms->d, x, entries_of(tile));
}

static void map_backward(struct fbn_call *call, const struct fbn_runs *tile)
{
    struct rooms rooms;
    void *const *par = call->scratch.par_columns;
    const void *x = call->given.x.data ? x_of(call, tile, rooms.x) : NULL;
    const char *dz = dz_of(call, tile, x, &rooms);
    if (call->given.dresidual.data)
        put_result(call, dz, call->given.dresidual, tile);
    if (!call->given.y.data)
        return;
    if (!call->plan.gradient)
        affine(call, tile, dz, rooms.d, par[0], par[1], par[2]);
    else if (call->given.weights)
        weighted_gradient(call, tile, x, dz, &rooms);
    else
        gradient(call, tile, x, dz, rooms.d);
    put_result(call, rooms.d, call->given.y, tile);
}

static void map_tile(struct fbn_call *call, const struct fbn_runs *tile, const struct sums_of_runs *sums)
{
    (void)sums;
    if (call->given.dy.data)
        map_backward(call, tile);
    else
        map_forward(call, tile);
}

void fbn_map_tiles(struct fbn_call *call, const struct fbn_runs *runs) { each_tile(call, runs, 1, map_tile, NULL); }
