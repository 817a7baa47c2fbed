/* The machine's limit: loops that read and write the least bytes an operation must move, and compute next to nothing.
 *
 *   read   every item of x once               the limit of moments
 *   copy   y = x                              of inference and training
 *   add    y = x + d, in float or in double   of backward, and of what takes a residual (of half types, whose sum would
 *                                             be computing: as integers)
 *
 * A copy of two arrays more after it makes the limit of backward through a residual: three reads, two writes.
 *
 * Vectors are 64 bytes, whatever the registers are. Loops begin where the output (of a read: the input) begins a cache
 * line, since stores that split lines, and non-temporal ones above all, would not be the limit. Threads take contiguous
 * shares that meet at cache lines. A call repeats its loop and reads the clock itself, so that nothing of the caller is
 * timed; one parallel region spans all repetitions, with a barrier after each: starting a team is no part of the limit.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define LINE 64
#define INLINE static inline __attribute__((always_inline))

typedef int32_t words __attribute__((vector_size(LINE), may_alias));

#if defined(__AVX512F__)
INLINE void store_past_caches(words *to, words v) { _mm512_stream_si512((void *)to, (__m512i)v); }
#elif defined(__AVX__)
INLINE void store_past_caches(words *to, words v)
{
    union { words all; __m256i part[2]; } u = {v};
    for (int k = 0; k < 2; ++k) _mm256_stream_si256((__m256i *)to + k, u.part[k]);
}
#elif defined(__SSE2__)
INLINE void store_past_caches(words *to, words v)
{
    union { words all; __m128i part[4]; } u = {v};
    for (int k = 0; k < 4; ++k) _mm_stream_si128((__m128i *)to + k, u.part[k]);
}
#elif defined(__clang__)
INLINE void store_past_caches(words *to, words v) { __builtin_nontemporal_store(v, to); }
#else
#define NO_NONTEMPORAL
INLINE void store_past_caches(words *to, words v) { *to = v; }
#endif

INLINE void fence(int nontemporal)
{
#if defined(__SSE2__)
    if (nontemporal) _mm_sfence();
#endif
    (void)nontemporal;
}

/* The empty asm keeps the compiler from making the loop a call of memcpy, which chooses its stores itself. */
#define WRITING_LOOP(name, item, RESULT) \
    INLINE void name(void *to, const void *from, const void *other, size_t n, int nontemporal) \
    { \
        typedef item vector __attribute__((vector_size(LINE), may_alias)); \
        typedef item loose __attribute__((vector_size(LINE), may_alias, aligned(sizeof(item)))); \
        enum { LANES = LINE / sizeof(item) }; \
        item *y = to; \
        const item *x = from, *d = other; \
        size_t i = 0; \
        for (; i < n && (uintptr_t)(y + i) % LINE; ++i) y[i] = RESULT(x[i], d[i]); \
        for (; i + 4 * LANES <= n; i += 4 * LANES) { \
            vector v[4]; \
            for (int k = 0; k < 4; ++k) \
                v[k] = RESULT(*(const loose *)(x + i + k * LANES), *(const loose *)(d + i + k * LANES)); \
            for (int k = 0; k < 4; ++k) { \
                if (nontemporal) store_past_caches((words *)(y + i + k * LANES), (words)v[k]); \
                else *(vector *)(y + i + k * LANES) = v[k]; \
            } \
            __asm__ volatile("" ::: "memory"); \
        } \
        for (; i < n; ++i) y[i] = RESULT(x[i], d[i]); \
        fence(nontemporal); \
    }

#define FIRST(a, b) ((void)(b), (a))
#define SUM(a, b) ((a) + (b))
WRITING_LOOP(copy, int32_t, FIRST)
WRITING_LOOP(add_f32, float, SUM)
WRITING_LOOP(add_f64, double, SUM)
WRITING_LOOP(add_u16, uint16_t, SUM)

/* The exclusive or of all items, as 32-bit words: no chain of additions to wait for, and no bit that goes unread. */
static int32_t read_all(const void *from, size_t n)
{
    enum { LANES = LINE / sizeof(int32_t), CHAINS = 8 };
    const int32_t *x = from;
    words sums[CHAINS] = {{0}};
    int32_t result = 0;
    size_t i = 0;
    for (; i < n && (uintptr_t)(x + i) % LINE; ++i) result ^= x[i];
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
        for (int k = 0; k < CHAINS; ++k) sums[k] ^= *(const words *)(x + i + k * LANES);
    for (; i < n; ++i) result ^= x[i];
    for (int k = 1; k < CHAINS; ++k) sums[0] ^= sums[k];
    for (int lane = 0; lane < LANES; ++lane) result ^= sums[0][lane];
    return result;
}

enum kind { READ, COPY, ADD_F32, ADD_F64, ADD_U16 };

struct task {
    enum kind kind;
    int nontemporal;
    size_t item;
    char *y;
    const char *x, *d;
    size_t n;
};

/* The item at which share `rank` of `shares` begins: the share before it ends there. */
static size_t begin_of(const struct task *task, int rank, int shares)
{
    if (rank == 0) return 0;
    if (rank == shares) return task->n;
    uintptr_t base = (uintptr_t)(task->kind == READ ? task->x : task->y);
    size_t bytes = task->n * task->item / shares * rank;
    size_t begin = ((base + bytes + LINE - 1) / LINE * LINE - base) / task->item;
    return begin < task->n ? begin : task->n;
}

static int32_t run_share(const struct task *task, int rank, int shares)
{
    size_t begin = begin_of(task, rank, shares), n = begin_of(task, rank + 1, shares) - begin;
    size_t offset = begin * task->item;
    char *y = task->y + offset;
    const char *x = task->x + offset, *d = task->d + offset;
    switch (task->kind * 2 + task->nontemporal) { /* so that each loop is compiled with its kind of stores */
    case COPY * 2: copy(y, x, x, n, 0); break;
    case COPY * 2 + 1: copy(y, x, x, n, 1); break;
    case ADD_F32 * 2: add_f32(y, x, d, n, 0); break;
    case ADD_F32 * 2 + 1: add_f32(y, x, d, n, 1); break;
    case ADD_F64 * 2: add_f64(y, x, d, n, 0); break;
    case ADD_F64 * 2 + 1: add_f64(y, x, d, n, 1); break;
    case ADD_U16 * 2: add_u16(y, x, d, n, 0); break;
    case ADD_U16 * 2 + 1: add_u16(y, x, d, n, 1); break;
    default: return read_all(x, n);
    }
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int limit_has_threads(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int limit_has_nontemporal(void)
{
#ifdef NO_NONTEMPORAL
    return 0;
#else
    return 1;
#endif
}

/* One share of the task, then of the copy after it, if there is one. */
static int32_t run_shares(const struct task *task, const struct task *after, int rank, int shares)
{
    int32_t result = run_share(task, rank, shares);
    if (after->y) run_share(after, rank, shares);
    return result;
}

/* Seconds of `number` repetitions; at *read, the xor of what was read last. n is in items of the kind: 2, 4 or 8 bytes.
 * y_after = x_after, of as many bytes, follows in every repetition, unless y_after is NULL. */
double limit_seconds(int kind, int nontemporal, int threads, void *y, const void *x, const void *d, size_t n,
                     void *y_after, const void *x_after, long number, int32_t *read)
{
    size_t item = kind == ADD_F64 ? 8 : kind == ADD_U16 ? 2 : 4;
    struct task task = {kind, nontemporal, item, y, x, d ? d : x, n};
    struct task after = {COPY, nontemporal, 4, y_after, x_after, x_after, n * item / 4};
    double begin = now();
    int32_t result = 0;
    if (threads == 1 || !limit_has_threads()) {
        for (long i = 0; i < number; ++i) {
            result = run_shares(&task, &after, 0, 1);
            __asm__ volatile("" : "+r"(result) : : "memory");
        }
    }
#ifdef _OPENMP
    else {
#pragma omp parallel num_threads(threads) reduction(^ : result)
        for (long i = 0; i < number; ++i) {
            result = run_shares(&task, &after, omp_get_thread_num(), omp_get_num_threads());
            __asm__ volatile("" : "+r"(result) : : "memory");
#pragma omp barrier
        }
    }
#endif
    *read = result;
    return now() - begin;
}

enum { GIVE_UP = -1 };

/* Waits until *turn is `mine`; 0 where the other thread gave up, or after a second. */
static int wait_for(atomic_long *turn, long mine)
{
    double begin = 0;
    for (long spins = 1;; ++spins) {
        long seen = atomic_load_explicit(turn, memory_order_acquire);
        if (seen == mine) return 1;
        if (seen == GIVE_UP) return 0;
        if (spins % 4096) continue;
        if (begin == 0) begin = now();
        if (now() - begin > 1) {
            atomic_store(turn, GIVE_UP);
            return 0;
        }
    }
}

/* Seconds until what one thread has written arrives at another, the mean of `number` round trips of one cache line; a
 * negative number where there are no two threads, or they do not run at the same time. */
double handover_seconds(long number)
{
    static _Alignas(2 * LINE) struct { atomic_long turn; char rest[2 * LINE]; } line;
    double seconds = -1;
    atomic_store(&line.turn, 0);
#ifdef _OPENMP
#pragma omp parallel num_threads(2)
    if (omp_get_num_threads() == 2) {
        const int rank = omp_get_thread_num();
        double begin = now();
        long i = 0;
        for (; i < number && wait_for(&line.turn, 2 * i + rank); ++i)
            atomic_store_explicit(&line.turn, 2 * i + rank + 1, memory_order_release);
        if (rank == 0 && i == number && wait_for(&line.turn, 2 * number)) seconds = (now() - begin) / (2 * number);
    }
#endif
    return seconds;
}
