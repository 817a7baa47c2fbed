/* vec_portable.h - the operations in plain C loops, for compilers without GNU vector extensions. It is what the other
 * headers mean:
 *
 *   set        every lane holds a
 *   load       16 floats (8 doubles) from p, aligned to the element
 *   load_tail  the first n lanes from p (1 <= n <= lanes), the others from fill; reads nothing past p + n
 *   store, store_tail
 *   stream     a store past the caches where the machine has one; p aligned to the vector's bytes
 *   add, sub, mul, div
 *   less       of a, b, x, y: x where a < b, else y, also where a or b is NaN
 *   magnitude  without the sign
 *   signed_as  the magnitude of a with the sign of s, zeros and NaN included
 *   power      the bits moved up by 23 (52), to where the exponent is: 2^k of a float whose last bits are k + 127, of a
 *              double whose last bits are k + 1023
 *   head       the last 12 (27) bits of the significand as zeros: the product of two heads is exact
 *   pick       entry i of a table of 16 floats, i the last two bits of the exponent, then the first two of the
 *              significand
 *   one, diff  diff(a, one(), b) is a - b; where a processor has fused multiply-add, as a * 1 - b, which is rounded once
 *              and so has the same bits, and leaves the adders to the sums
 *   settle     nothing, but that the compiler should compute a vector here, neither earlier nor later
 *   join       the first n lanes of a, the others of b (0 <= n <= lanes)
 *   fold       of doubles a, b: a[i] + a[i + 4] in lanes 0 to 3, b[i] + b[i + 4] in lanes 4 to 7
 *   widen      8 floats as doubles, exactly; widen_tail likewise with n and fill
 *   low, high  lanes 0 to 7, lanes 8 to 15, as doubles, exactly
 *   u16x16     16 values of a half type as they lie in memory: load, load_tail (others 0), store, store_tail, stream
 *   of_f16, to_f16, of_bf16, to_bf16
 *              from u16x16, exactly, and to it: rounded to nearest even, subnormals kept, NaN stays NaN
 *   pair_of_bf16, pair_to_bf16
 *              32 bfloat16 values as the floats of the even and of the odd entries, a pair of vectors, and back: on most
 *              machines in fewer instructions than in their order. Back perhaps past the caches: p aligned to 64 bytes
 *   FBN_MANY_REGISTERS  1 where 32 registers hold a whole vector each
 *   fbn_prefetch      asks for the cache line of p in the second-level cache; p need not exist
 *   fbn_prefetch_near the same in the first-level cache
 *   fbn_stream_fence  orders stream stores before what follows
 */
#ifndef FBN_VEC_H
#define FBN_VEC_H

#include <stdint.h>
#include <string.h>

#include "vec_plain.h"

typedef struct { float v[16]; } f32x16;
typedef struct { double v[8]; } f64x8;

#define FBN_LANES(count, expression)  \
    for (int i = 0; i < (count); i++) \
    (expression)

/* U: an unsigned integer of the size of T, S: its sign bit, M: the bits of T's significand that are stored, H: the bits
 * that a head has not. */
#define FBN_PORTABLE(V, T, W, U, S, M, H)                                                      \
    static inline V V##_set(T a) { V r; FBN_LANES(W, r.v[i] = a); return r; }                  \
    static inline V V##_load(const T *p) { V r; FBN_LANES(W, r.v[i] = p[i]); return r; }       \
    static inline V V##_load_tail(const T *p, int64_t n, V fill)                               \
    {                                                                                          \
        FBN_LANES((int)n, fill.v[i] = p[i]);                                                   \
        return fill;                                                                           \
    }                                                                                          \
    static inline void V##_store(T *p, V a) { FBN_LANES(W, p[i] = a.v[i]); }                   \
    static inline void V##_store_tail(T *p, int64_t n, V a) { FBN_LANES((int)n, p[i] = a.v[i]); } \
    static inline void V##_stream(T *p, V a) { V##_store(p, a); }                              \
    static inline V V##_add(V a, V b) { FBN_LANES(W, a.v[i] += b.v[i]); return a; }            \
    static inline V V##_sub(V a, V b) { FBN_LANES(W, a.v[i] -= b.v[i]); return a; }            \
    static inline V V##_mul(V a, V b) { FBN_LANES(W, a.v[i] *= b.v[i]); return a; }            \
    static inline V V##_div(V a, V b) { FBN_LANES(W, a.v[i] /= b.v[i]); return a; }            \
    static inline V V##_less(V a, V b, V x, V y)                                               \
    {                                                                                          \
        FBN_LANES(W, x.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i]);                              \
        return x;                                                                              \
    }                                                                                          \
    static inline V V##_signed_as(V a, V s)                                                    \
    {                                                                                          \
        U bits[W], signs[W];                                                                   \
        memcpy(bits, &a, sizeof a);                                                            \
        memcpy(signs, &s, sizeof s);                                                           \
        FBN_LANES(W, bits[i] = (bits[i] & ~(S)) | (signs[i] & (S)));                           \
        memcpy(&a, bits, sizeof a);                                                            \
        return a;                                                                              \
    }                                                                                          \
    static inline V V##_magnitude(V a) { return V##_signed_as(a, V##_set(0)); }                \
    static inline V V##_power(V a)                                                             \
    {                                                                                          \
        U bits[W];                                                                             \
        memcpy(bits, &a, sizeof a);                                                            \
        FBN_LANES(W, bits[i] <<= (M));                                                         \
        memcpy(&a, bits, sizeof a);                                                            \
        return a;                                                                              \
    }                                                                                          \
    static inline V V##_head(V a)                                                              \
    {                                                                                          \
        U bits[W];                                                                             \
        memcpy(bits, &a, sizeof a);                                                            \
        FBN_LANES(W, bits[i] = bits[i] >> (H) << (H));                                         \
        memcpy(&a, bits, sizeof a);                                                            \
        return a;                                                                              \
    }                                                                                          \
    static inline V V##_join(V a, V b, int64_t n)                                               \
    {                                                                                          \
        FBN_LANES((int)n, b.v[i] = a.v[i]);                                                    \
        return b;                                                                              \
    }

FBN_PORTABLE(f32x16, float, 16, uint32_t, 0x80000000u, 23, 12)
FBN_PORTABLE(f64x8, double, 8, uint64_t, 0x8000000000000000u, 52, 27)

static inline f32x16 f32x16_pick(const float *table, f32x16 a)
{
    uint32_t bits[16];
    memcpy(bits, &a, sizeof a);
    FBN_LANES(16, a.v[i] = table[bits[i] >> 21 & 15]);
    return a;
}

static inline f64x8 f64x8_widen(const float *p)
{
    f64x8 r;
    FBN_LANES(8, r.v[i] = p[i]);
    return r;
}
static inline f64x8 f64x8_widen_tail(const float *p, int64_t n, f64x8 fill)
{
    FBN_LANES((int)n, fill.v[i] = p[i]);
    return fill;
}
static inline f64x8 f32x16_low(f32x16 a) { return f64x8_widen(a.v); }
static inline f64x8 f32x16_high(f32x16 a) { return f64x8_widen(a.v + 8); }

static inline f64x8 f64x8_fold(f64x8 a, f64x8 b)
{
    f64x8 r;
    FBN_LANES(4, r.v[i] = a.v[i] + a.v[i + 4]);
    FBN_LANES(4, r.v[i + 4] = b.v[i] + b.v[i + 4]);
    return r;
}

#include "half_lanes.h"

static inline void fbn_prefetch(const void *p) { (void)p; }
static inline void fbn_prefetch_near(const void *p) { (void)p; }
static inline void fbn_stream_fence(void) {}

#endif
