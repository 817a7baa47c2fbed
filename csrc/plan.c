/* plan.c - see plan.h. The constants were measured; changing one may change last bits of results. */
#include "plan.h"

enum { LANES = 16 };

/* Which arrays are tables. Planes smaller than SMALL_S are columns of a table that has at least SMALL_S_ROWS rows. */
enum { SMALL_S = 64, SMALL_S_ROWS = 8 };

/* How tables are folded. The sums and parameters of NARROW_ENOUGH columns fit the registers. A folded table that cannot be
 * as narrow should have WIDE_ENOUGH columns; from TOO_WIDE on, whole vectors cost more than they save. From NEVER_FOLD
 * columns on, an odd width costs nothing. */
enum { NARROW_ENOUGH = 64, WIDE_ENOUGH = 256, TOO_WIDE = 512, NEVER_FOLD = 1024 };

/* Bands. A table of up to NARROW columns is summed in high bands. A cache holds few rows at once of a multiple of CROWDED
 * columns where there are two arrays, or twice that for one. The order of memory hardly matters for up to NEAR entries. */
enum { NARROW = 256, CROWDED = 512, NEAR = 524288 };

/* Chunks of tables. A chunk of a narrow table is a multiple of NARROW_STEP rows and has at least NARROW_CHUNK entries;
 * others have WIDE_STEP and WIDE_CHUNK.
 * A chunk of a wide table has at least CHUNK_ROWS rows, so that storing its sums stays cheap: 16 bytes a column, written
 * by one thread and read by another. That minimum never exceeds 1/MIN_CHUNKS of the table, so that threads have
 * something to share. Tables of VERY_WIDE columns are split by column and need no such share.
 * Up to FEW_CHUNKS chunks are rounded to the nearest step, because threads share them out one by one. A table stores at
 * most PARTIALS pairs of sums. */
enum {
    NARROW_STEP = 16, NARROW_CHUNK = 32768,
    WIDE_STEP = 8, WIDE_CHUNK = 65536,
    CHUNK_ROWS = 256, MIN_CHUNKS = 4, VERY_WIDE = 4096,
    FEW_CHUNKS = 8,
    PARTIALS = 131072
};

/* Chunks of planes. A run has at most RUN entries, a chunk has at least CHUNK, and a feature has at most MOST_CHUNKS. */
enum { RUN = 16384, CHUNK = 16384, MOST_CHUNKS = 64 };

/* A feature of fewer entries has half as many samples for its pivot, which would otherwise be a good part of it. */
enum { FEW_ENTRIES = 256 };

static int64_t lanes_gcd(int64_t a)
{
    int64_t g = LANES;
    while (a % g)
        g /= 2;
    return g;
}

/* The rows of the array that make one row of the table, so that it is whole vectors. */
static int64_t fold_for_map(int64_t n, int64_t columns)
{
    int64_t base = LANES / lanes_gcd(columns);
    if (columns >= NEVER_FOLD || (base == 1 && (columns >= WIDE_ENOUGH || columns == NARROW_ENOUGH)))
        return 1;
    int64_t least_columns = base * columns;
    int64_t times = fbn_divide_up(WIDE_ENOUGH, least_columns);
    if (least_columns <= NARROW_ENOUGH)
        times = NARROW_ENOUGH / least_columns;
    int64_t fold = base * times;
    if (n / fold >= 8)
        return fold;
    return n / base >= 2 ? base : 1;
}

/* Where whole vectors would make a row too wide for sums, it may end within one. */
static int64_t fold_for_sums(int64_t n, int64_t columns)
{
    int64_t fold = fold_for_map(n, columns), least = fbn_divide_up(WIDE_ENOUGH, columns);
    if (columns <= NARROW_ENOUGH && fold * columns > NARROW_ENOUGH)
        fold = NARROW_ENOUGH / columns;
    else if (columns > NARROW_ENOUGH && fold * columns > TOO_WIDE)
        fold = n / least >= 8 ? least : 1;
    return fold;
}

static int is_table(int64_t n, int64_t c, int64_t s, int64_t small_s, int packed)
{
    if (s == 1)
        return 1;
    return packed && c > 1 && s < small_s && n >= SMALL_S_ROWS;
}

static int64_t min_chunk_rows(const struct fbn_plan *plan)
{
    int64_t most = fbn_min(MOST_CHUNKS, fbn_max(1, PARTIALS / plan->width)), share = fbn_divide_up(plan->rows, most);
    if (plan->width <= NARROW)
        return fbn_max(fbn_divide_up(NARROW_CHUNK, plan->width), share);
    int64_t rows = fbn_min(CHUNK_ROWS, plan->width >= VERY_WIDE ? plan->rows : plan->rows / MIN_CHUNKS);
    return fbn_max(fbn_max(fbn_divide_up(WIDE_CHUNK, plan->width), share), rows);
}

/* Makes an even number of about equal chunks, which two threads share evenly. */
static void cut_rows(struct fbn_plan *plan)
{
    int64_t step = plan->width <= NARROW ? NARROW_STEP : WIDE_STEP;
    int64_t chunks = fbn_divide_up(plan->rows, min_chunk_rows(plan));
    chunks = fbn_max(1, chunks + (chunks % 2 && chunks > 1));
    if (chunks <= FEW_CHUNKS)
        plan->chunk = fbn_max(1, (plan->rows / chunks + step / 2) / step) * step;
    else
        plan->chunk = fbn_divide_up(fbn_divide_up(plan->rows, chunks), step) * step;
    plan->chunks = fbn_max(1, fbn_min(chunks, fbn_divide_up(plan->rows, plan->chunk)));
}

/* The higher a band, the fewer sums are added up in double. But the rows of a band are read side by side. That costs where
 * they come from memory, more so with dy, and where they compete for the same lines of the first-level cache. */
static void choose_bands(struct fbn_plan *plan)
{
    const int narrow = plan->width <= NARROW, near = plan->rows <= NEAR / plan->width;
    plan->band = narrow || (near && plan->width % (2 * CROWDED) != 0) ? 16 : 8;
    plan->band_dy = near && plan->width % CROWDED != 0 ? 16 : narrow ? 8 : 4;
}

static void cut_table(struct fbn_plan *plan, int for_map, int packed)
{
    int64_t columns = plan->c * plan->s;
    plan->layout = FBN_ROWS;
    plan->fold = !packed ? 1 : for_map ? fold_for_map(plan->n, columns) : fold_for_sums(plan->n, columns);
    plan->width = plan->fold * columns;
    plan->rows = plan->n / plan->fold;
    plan->tail = plan->n % plan->fold * columns;
    choose_bands(plan);
    cut_rows(plan);
    plan->grain = plan->fold > 1 ? plan->c : plan->s == 1 ? 4 * LANES : LANES;
}

static void cut_planes(struct fbn_plan *plan)
{
    plan->layout = FBN_PLANES;
    plan->run = fbn_min(fbn_max(1, plan->s), RUN);
    plan->runs = fbn_divide_up(plan->s, plan->run);
    int64_t all = plan->n * plan->runs;
    plan->chunk = fbn_max(fbn_divide_up(CHUNK, plan->run), fbn_divide_up(all, MOST_CHUNKS));
    plan->chunks = fbn_max(1, fbn_divide_up(all, plan->chunk));
    plan->grain = 1;
}

static struct fbn_plan make_plan(int64_t n, int64_t c, int64_t s, int for_map, int packed)
{
    struct fbn_plan plan = {.n = n, .c = c, .s = s};
    if (c == 1 && packed) {
        plan.n = 1;
        plan.s = n * s;
    }
    if (plan.c > 1 && is_table(plan.n, plan.c, plan.s, for_map ? LANES : SMALL_S, packed))
        cut_table(&plan, for_map, packed);
    else
        cut_planes(&plan);
    return plan;
}

struct fbn_plan fbn_plan_sums(int64_t n, int64_t c, int64_t s, int packed) { return make_plan(n, c, s, 0, packed); }

struct fbn_plan fbn_plan_map(int64_t n, int64_t c, int64_t s, int packed) { return make_plan(n, c, s, 1, packed); }

int fastbn_wants_packed(const fastbn_shape *shape)
{
    if (!shape || shape->n < 1 || shape->c < 1 || shape->s < 1)
        return 0;
    struct fbn_plan plan = fbn_plan_sums(shape->n, shape->c, shape->s, 1);
    return plan.n != shape->n || (plan.layout == FBN_ROWS && (plan.fold > 1 || plan.s > 1));
}

/* Half of them is a multiple of 8 doubles, with room to align them as the columns of x are. */
int64_t fbn_plan_chunk_sums(const struct fbn_plan *plan) { return 2 * ((plan->width + 7) / 8 * 8 + 8); }

int64_t fbn_plan_partials(const struct fbn_plan *plan)
{
    return plan->chunks * (plan->layout == FBN_ROWS ? fbn_plan_chunk_sums(plan) : FBN_ACCUMULATORS * plan->c);
}

/* Samples are spread evenly, but each has a shift of its own (multiples of the golden ratio): at equal distances they
 * would all fall on the same phase of periodic data. */
int fbn_plan_samples(const struct fbn_plan *plan, int64_t entry[FBN_PIVOT_SAMPLES])
{
    int64_t entries = plan->n * plan->s;
    int count = (int)fbn_min(entries, entries < FEW_ENTRIES ? FBN_PIVOT_SAMPLES / 2 : FBN_PIVOT_SAMPLES);
    int64_t distance = entries / count;
    for (int i = 0; i < count; i++) {
        int64_t shift = (int64_t)((uint64_t)distance % 65536 * (40503u * (unsigned)i % 65536) / 65536);
        entry[i] = distance * i + shift;
    }
    return count;
}

int64_t fbn_plan_runs(const struct fbn_plan *plan)
{
    return plan->layout == FBN_PLANES ? plan->n * plan->c * plan->runs : plan->rows + (plan->tail > 0);
}

struct fbn_runs fbn_plan_group(const struct fbn_plan *plan, int64_t q, int64_t end)
{
    int64_t plane = q / plan->runs, i = q % plan->runs * plan->run, f = plane % plan->c;
    int64_t count = plan->runs > 1 ? 1 : fbn_min(plan->c - f, end - q);
    return (struct fbn_runs){.n = plane / plan->c, .f = f, .i = i, .count = count,
                             .len = fbn_min(plan->s - i, plan->run), .next_c = 1, .column = f};
}
