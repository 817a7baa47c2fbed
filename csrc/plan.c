/* plan.c - see plan.h. The constants were measured; changing one may change last bits of results. */
#include "plan.h"

enum {
    LANES = 16,
    SMALL_S = 64,         /* planes smaller than this are columns of a table */
    NARROW = 256,         /* columns of a table that is summed in high bands */
    CROWDED = 512,        /* of a multiple of so many columns a cache holds few rows at once; of one array, of twice that */
    NEAR = 524288,        /* entries of a table for which memory's order does not matter much */
    SMALL_S_ROWS = 8,     /* given at least this many rows */
    NARROW_ENOUGH = 64,   /* columns whose sums and parameters fit the registers */
    WIDE_ENOUGH = 256,    /* columns that a folded table should have, if it cannot be as narrow as that */
    TOO_WIDE = 512,       /* columns of a folded table beyond which whole vectors cost more than they save */
    NEVER_FOLD = 1024,    /* columns from which an odd width costs nothing */
    PIECE = 16384,        /* entries */
    ROW_STEP = 16,        /* a chunk of a narrow table is a multiple of so many rows */
    TABLE_CHUNK = 32768,  /* and has at least so many entries */
    WIDE_STEP = 8,        /* the same of others */
    WIDE_CHUNK = 65536,
    CHUNK_ROWS = 256,     /* which have so many rows, if that leaves */
    SOME_CHUNKS = 4,      /* so many chunks: each costs 16 bytes a column to store, and to exchange between threads, */
    WIDE = 4096,          /* or the table is so wide that threads can share its columns */
    FEW_CHUNKS = 8,       /* whose sizes are rounded to the nearest step, since threads share them out */
    CHUNK = 16384,        /* entries of a feature, at least */
    MOST_CHUNKS = 64,
    PARTIALS = 131072,    /* pairs of sums that a table may store */
    FEW_ENTRIES = 256     /* of a feature: fewer samples, which would be a good part of them */
};

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

static int64_t lanes_gcd(int64_t a)
{
    int64_t g = LANES;
    while (a % g)
        g /= 2;
    return g;
}

/* Rows of the array that make one row of the table, so that it is whole vectors. */
static int64_t fold_of(int64_t n, int64_t columns)
{
    int64_t base = LANES / lanes_gcd(columns);
    if (columns >= NEVER_FOLD || (base == 1 && (columns >= WIDE_ENOUGH || columns == NARROW_ENOUGH)))
        return 1;
    int64_t least_columns = base * columns;
    int64_t times = divide_up(WIDE_ENOUGH, least_columns);
    if (least_columns <= NARROW_ENOUGH)
        times = NARROW_ENOUGH / least_columns;
    int64_t fold = base * times;
    if (n / fold >= 8)
        return fold;
    return n / base >= 2 ? base : 1;
}

/* For sums, where whole vectors would take too wide a row, it may end within one. */
static int64_t fold_of_sums(int64_t n, int64_t columns)
{
    int64_t fold = fold_of(n, columns), least = divide_up(WIDE_ENOUGH, columns);
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

/* Rows of a chunk, at least. */
static int64_t least_rows(const struct fbn_plan *plan)
{
    int64_t most = fbn_min(MOST_CHUNKS, fbn_max(1, PARTIALS / plan->width)), share = divide_up(plan->rows, most);
    if (plan->width <= NARROW)
        return fbn_max(divide_up(TABLE_CHUNK, plan->width), share);
    int64_t rows = fbn_min(CHUNK_ROWS, plan->width >= WIDE ? plan->rows : plan->rows / SOME_CHUNKS);
    return fbn_max(fbn_max(divide_up(WIDE_CHUNK, plan->width), share), rows);
}

/* An even number of about equal chunks, which two threads share evenly. */
static void cut_rows(struct fbn_plan *plan)
{
    int64_t step = plan->width <= NARROW ? ROW_STEP : WIDE_STEP, chunks = divide_up(plan->rows, least_rows(plan));
    chunks = fbn_max(1, chunks + (chunks % 2 && chunks > 1));
    if (chunks <= FEW_CHUNKS)
        plan->chunk = fbn_max(1, (plan->rows / chunks + step / 2) / step) * step;
    else
        plan->chunk = divide_up(divide_up(plan->rows, chunks), step) * step;
    plan->chunks = fbn_max(1, fbn_min(chunks, divide_up(plan->rows, plan->chunk)));
}

/* The higher, the fewer sums are added up in double; but rows of a band are read side by side, which costs where they
 * come from memory, more so with dy, and where they compete for the same lines of the first-level cache. */
static void choose_bands(struct fbn_plan *plan)
{
    const int narrow = plan->width <= NARROW, near = plan->rows <= NEAR / plan->width;
    plan->band = narrow || (near && plan->width % (2 * CROWDED) != 0) ? 16 : 8;
    plan->band_dy = near && plan->width % CROWDED != 0 ? 16 : narrow ? 8 : 4;
}

static void cut_table(struct fbn_plan *plan, int second, int packed)
{
    int64_t columns = plan->c * plan->s;
    plan->layout = FBN_ROWS;
    plan->fold = !packed ? 1 : second ? fold_of(plan->n, columns) : fold_of_sums(plan->n, columns);
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
    plan->run = fbn_min(fbn_max(1, plan->s), PIECE);
    plan->runs = divide_up(plan->s, plan->run);
    int64_t all = plan->n * plan->runs;
    plan->chunk = fbn_max(divide_up(CHUNK, plan->run), divide_up(all, MOST_CHUNKS));
    plan->chunks = fbn_max(1, divide_up(all, plan->chunk));
    plan->grain = 1;
}

static struct fbn_plan make(int64_t n, int64_t c, int64_t s, int second, int packed)
{
    struct fbn_plan plan = {.n = n, .c = c, .s = s};
    if (c == 1 && packed) {
        plan.n = 1;
        plan.s = n * s;
    }
    if (plan.c > 1 && is_table(plan.n, plan.c, plan.s, second ? LANES : SMALL_S, packed))
        cut_table(&plan, second, packed);
    else
        cut_planes(&plan);
    return plan;
}

struct fbn_plan fbn_plan_sums(int64_t n, int64_t c, int64_t s, int packed) { return make(n, c, s, 0, packed); }

struct fbn_plan fbn_plan_map(int64_t n, int64_t c, int64_t s, int packed) { return make(n, c, s, 1, packed); }

int fastbn_wants_packed(const fastbn_shape *shape)
{
    if (!shape || shape->n < 1 || shape->c < 1 || shape->s < 1)
        return 0;
    struct fbn_plan plan = fbn_plan_sums(shape->n, shape->c, shape->s, 1);
    return plan.n != shape->n || (plan.layout == FBN_ROWS && (plan.fold > 1 || plan.s > 1));
}

/* Half of it is a multiple of 8 doubles, with room to align them as the columns of x are. */
int64_t fbn_plan_chunk_sums(const struct fbn_plan *plan) { return 2 * ((plan->width + 7) / 8 * 8 + 8); }

int64_t fbn_plan_partials(const struct fbn_plan *plan)
{
    return plan->chunks * (plan->layout == FBN_ROWS ? fbn_plan_chunk_sums(plan) : FBN_ACCUMULATORS * plan->c);
}

/* Spread evenly, but for a shift of its own for each (multiples of the golden ratio): samples at equal distances would
 * all fall on the same phase of periodic data. */
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
