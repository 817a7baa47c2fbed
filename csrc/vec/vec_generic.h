/* vec_generic.h - for any machine: four 16-byte vectors of the GNU extension (gcc, clang), which become SSE2 on x86-64
 * and what there is elsewhere. Other compilers take vec_portable.h, whose head says what each operation means. */
#if !defined(__GNUC__) || defined(FBN_PORTABLE_VEC)
#include "vec_portable.h"
#else
#ifndef FBN_VEC_H
#define FBN_VEC_H

#include <stdint.h>
#include <string.h>

#include "vec_plain.h"

typedef float fbn_f4 __attribute__((vector_size(16)));
typedef double fbn_d2 __attribute__((vector_size(16)));
typedef uint32_t fbn_u4 __attribute__((vector_size(16)));
typedef uint64_t fbn_u2 __attribute__((vector_size(16)));
typedef struct { fbn_f4 a, b, c, d; } f32x16;
typedef struct { fbn_d2 a, b, c, d; } f64x8;

static inline fbn_f4 fbn_f4_load(const float *p)
{
    fbn_f4 v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline fbn_d2 fbn_d2_load(const double *p)
{
    fbn_d2 v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline fbn_d2 fbn_d2_widen(const float *p) { return (fbn_d2){p[0], p[1]}; }

/* x where a < b, else y. */
static inline fbn_f4 fbn_f4_less(fbn_f4 a, fbn_f4 b, fbn_f4 x, fbn_f4 y)
{
    fbn_u4 mask = (fbn_u4)(a < b);
    return (fbn_f4)((mask & (fbn_u4)x) | (~mask & (fbn_u4)y));
}
static inline fbn_d2 fbn_d2_less(fbn_d2 a, fbn_d2 b, fbn_d2 x, fbn_d2 y)
{
    fbn_u2 mask = (fbn_u2)(a < b);
    return (fbn_d2)((mask & (fbn_u2)x) | (~mask & (fbn_u2)y));
}
/* The bits of x but the first, the first of s. */
static inline fbn_f4 fbn_f4_sign(fbn_f4 x, fbn_f4 s)
{
    return (fbn_f4)(((fbn_u4)x & 0x7fffffffu) | ((fbn_u4)s & 0x80000000u));
}
static inline fbn_d2 fbn_d2_sign(fbn_d2 x, fbn_d2 s)
{
    return (fbn_d2)(((fbn_u2)x & 0x7fffffffffffffffull) | ((fbn_u2)s & 0x8000000000000000ull));
}

static inline f32x16 f32x16_set(float a)
{
    fbn_f4 v = {a, a, a, a};
    return (f32x16){v, v, v, v};
}
static inline f32x16 f32x16_load(const float *p)
{
    return (f32x16){fbn_f4_load(p), fbn_f4_load(p + 4), fbn_f4_load(p + 8), fbn_f4_load(p + 12)};
}
static inline void f32x16_store(float *p, f32x16 v) { memcpy(p, &v, sizeof v); }
static inline f32x16 f32x16_load_tail(const float *p, int64_t n, f32x16 fill)
{
    memcpy(&fill, p, (size_t)n * sizeof *p);
    return fill;
}
static inline void f32x16_store_tail(float *p, int64_t n, f32x16 v) { memcpy(p, &v, (size_t)n * sizeof *p); }
static inline void f32x16_stream(float *p, f32x16 v) { f32x16_store(p, v); }
static inline f32x16 f32x16_add(f32x16 x, f32x16 y) { return (f32x16){x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
static inline f32x16 f32x16_sub(f32x16 x, f32x16 y) { return (f32x16){x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
static inline f32x16 f32x16_mul(f32x16 x, f32x16 y) { return (f32x16){x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
static inline f32x16 f32x16_div(f32x16 x, f32x16 y) { return (f32x16){x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
static inline f32x16 f32x16_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y)
{
    return (f32x16){fbn_f4_less(a.a, b.a, x.a, y.a), fbn_f4_less(a.b, b.b, x.b, y.b),
                    fbn_f4_less(a.c, b.c, x.c, y.c), fbn_f4_less(a.d, b.d, x.d, y.d)};
}
static inline f32x16 f32x16_signed_as(f32x16 x, f32x16 s)
{
    return (f32x16){fbn_f4_sign(x.a, s.a), fbn_f4_sign(x.b, s.b), fbn_f4_sign(x.c, s.c), fbn_f4_sign(x.d, s.d)};
}
static inline f32x16 f32x16_magnitude(f32x16 x) { return f32x16_signed_as(x, f32x16_set(0)); }
static inline f32x16 f32x16_power(f32x16 x)
{
    return (f32x16){(fbn_f4)((fbn_u4)x.a << 23), (fbn_f4)((fbn_u4)x.b << 23),
                    (fbn_f4)((fbn_u4)x.c << 23), (fbn_f4)((fbn_u4)x.d << 23)};
}

static inline fbn_f4 fbn_f4_head(fbn_f4 x) { return (fbn_f4)((fbn_u4)x & 0xfffff000u); }
static inline f32x16 f32x16_head(f32x16 x)
{
    return (f32x16){fbn_f4_head(x.a), fbn_f4_head(x.b), fbn_f4_head(x.c), fbn_f4_head(x.d)};
}
static inline fbn_f4 fbn_f4_pick(const float *table, fbn_f4 x)
{
    fbn_u4 index = ((fbn_u4)x >> 21) & 15;
    return (fbn_f4){table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}
static inline f32x16 f32x16_pick(const float *table, f32x16 x)
{
    return (f32x16){fbn_f4_pick(table, x.a), fbn_f4_pick(table, x.b), fbn_f4_pick(table, x.c), fbn_f4_pick(table, x.d)};
}

static inline f32x16 f32x16_join(f32x16 x, f32x16 y, int64_t n)
{
    memcpy(&y, &x, (size_t)n * sizeof(float));
    return y;
}

static inline f64x8 f64x8_set(double a)
{
    fbn_d2 v = {a, a};
    return (f64x8){v, v, v, v};
}
static inline f64x8 f64x8_load(const double *p)
{
    return (f64x8){fbn_d2_load(p), fbn_d2_load(p + 2), fbn_d2_load(p + 4), fbn_d2_load(p + 6)};
}
static inline void f64x8_store(double *p, f64x8 v) { memcpy(p, &v, sizeof v); }
static inline f64x8 f64x8_load_tail(const double *p, int64_t n, f64x8 fill)
{
    memcpy(&fill, p, (size_t)n * sizeof *p);
    return fill;
}
static inline void f64x8_store_tail(double *p, int64_t n, f64x8 v) { memcpy(p, &v, (size_t)n * sizeof *p); }
static inline void f64x8_stream(double *p, f64x8 v) { f64x8_store(p, v); }
static inline f64x8 f64x8_add(f64x8 x, f64x8 y) { return (f64x8){x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
static inline f64x8 f64x8_sub(f64x8 x, f64x8 y) { return (f64x8){x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
static inline f64x8 f64x8_mul(f64x8 x, f64x8 y) { return (f64x8){x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
static inline f64x8 f64x8_div(f64x8 x, f64x8 y) { return (f64x8){x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
static inline f64x8 f64x8_less(f64x8 a, f64x8 b, f64x8 x, f64x8 y)
{
    return (f64x8){fbn_d2_less(a.a, b.a, x.a, y.a), fbn_d2_less(a.b, b.b, x.b, y.b),
                   fbn_d2_less(a.c, b.c, x.c, y.c), fbn_d2_less(a.d, b.d, x.d, y.d)};
}
static inline f64x8 f64x8_signed_as(f64x8 x, f64x8 s)
{
    return (f64x8){fbn_d2_sign(x.a, s.a), fbn_d2_sign(x.b, s.b), fbn_d2_sign(x.c, s.c), fbn_d2_sign(x.d, s.d)};
}
static inline f64x8 f64x8_magnitude(f64x8 x) { return f64x8_signed_as(x, f64x8_set(0)); }
static inline f64x8 f64x8_power(f64x8 x)
{
    return (f64x8){(fbn_d2)((fbn_u2)x.a << 52), (fbn_d2)((fbn_u2)x.b << 52),
                   (fbn_d2)((fbn_u2)x.c << 52), (fbn_d2)((fbn_u2)x.d << 52)};
}

static inline fbn_d2 fbn_d2_head(fbn_d2 x) { return (fbn_d2)((fbn_u2)x & 0xfffffffff8000000ull); }
static inline f64x8 f64x8_head(f64x8 x)
{
    return (f64x8){fbn_d2_head(x.a), fbn_d2_head(x.b), fbn_d2_head(x.c), fbn_d2_head(x.d)};
}

static inline f64x8 f64x8_join(f64x8 x, f64x8 y, int64_t n)
{
    memcpy(&y, &x, (size_t)n * sizeof(double));
    return y;
}
static inline f64x8 f64x8_fold(f64x8 x, f64x8 y) { return (f64x8){x.a + x.c, x.b + x.d, y.a + y.c, y.b + y.d}; }

static inline f64x8 f64x8_widen(const float *p)
{
    return (f64x8){fbn_d2_widen(p), fbn_d2_widen(p + 2), fbn_d2_widen(p + 4), fbn_d2_widen(p + 6)};
}
static inline f64x8 f64x8_widen_tail(const float *p, int64_t n, f64x8 fill)
{
    double lanes[8];
    f64x8_store(lanes, fill);
    for (int64_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return f64x8_load(lanes);
}
static inline f64x8 f32x16_low(f32x16 v)
{
    return (f64x8){{v.a[0], v.a[1]}, {v.a[2], v.a[3]}, {v.b[0], v.b[1]}, {v.b[2], v.b[3]}};
}
static inline f64x8 f32x16_high(f32x16 v)
{
    return (f64x8){{v.c[0], v.c[1]}, {v.c[2], v.c[3]}, {v.d[0], v.d[1]}, {v.d[2], v.d[3]}};
}

#include "half_lanes.h"

static inline void fbn_prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
static inline void fbn_prefetch_near(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void fbn_stream_fence(void) {}

#endif
#endif
