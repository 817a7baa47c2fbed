/* vec_neon.h - 16 floats in four q registers, 8 doubles in four. See vec_portable.h for what each operation means.
 * AArch64 has no masked loads: parts go through a small array. Its non-temporal stores come in pairs that no intrinsic
 * names; ordinary ones do. */
#ifndef FBN_VEC_H
#define FBN_VEC_H

#include <arm_neon.h>
#include <stdint.h>

#include "vec_plain.h"

typedef struct { float32x4_t a, b, c, d; } f32x16;
typedef struct { float64x2_t a, b, c, d; } f64x8;

static inline f32x16 f32x16_set(float x)
{
    float32x4_t v = vdupq_n_f32(x);
    return (f32x16){v, v, v, v};
}
static inline f32x16 f32x16_load(const float *p)
{
    return (f32x16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
static inline void f32x16_store(float *p, f32x16 v)
{
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}
static inline f32x16 f32x16_load_tail(const float *p, int64_t n, f32x16 fill)
{
    float lanes[16];
    f32x16_store(lanes, fill);
    for (int64_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return f32x16_load(lanes);
}
static inline void f32x16_store_tail(float *p, int64_t n, f32x16 v)
{
    float lanes[16];
    f32x16_store(lanes, v);
    for (int64_t i = 0; i < n; i++)
        p[i] = lanes[i];
}
static inline void f32x16_stream(float *p, f32x16 v) { f32x16_store(p, v); }
static inline f32x16 f32x16_add(f32x16 x, f32x16 y)
{
    return (f32x16){vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
}
static inline f32x16 f32x16_sub(f32x16 x, f32x16 y)
{
    return (f32x16){vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c), vsubq_f32(x.d, y.d)};
}
static inline f32x16 f32x16_mul(f32x16 x, f32x16 y)
{
    return (f32x16){vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
}
static inline f32x16 f32x16_div(f32x16 x, f32x16 y)
{
    return (f32x16){vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b), vdivq_f32(x.c, y.c), vdivq_f32(x.d, y.d)};
}
static inline f32x16 f32x16_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y)
{
    return (f32x16){vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
                    vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}
static inline f32x16 f32x16_magnitude(f32x16 x)
{
    return (f32x16){vabsq_f32(x.a), vabsq_f32(x.b), vabsq_f32(x.c), vabsq_f32(x.d)};
}
static inline f32x16 f32x16_signed_as(f32x16 x, f32x16 s)
{
    return (f32x16){vbslq_f32(vdupq_n_u32(0x80000000u), s.a, x.a), vbslq_f32(vdupq_n_u32(0x80000000u), s.b, x.b),
                    vbslq_f32(vdupq_n_u32(0x80000000u), s.c, x.c), vbslq_f32(vdupq_n_u32(0x80000000u), s.d, x.d)};
}
static inline f32x16 f32x16_power(f32x16 x)
{
    return (f32x16){vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.a), 23)),
                    vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.b), 23)),
                    vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.c), 23)),
                    vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.d), 23))};
}
static inline float32x4_t fbn_head32(float32x4_t x)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0xfffff000u)));
}
static inline f32x16 f32x16_head(f32x16 x)
{
    return (f32x16){fbn_head32(x.a), fbn_head32(x.b), fbn_head32(x.c), fbn_head32(x.d)};
}
/* The table as 64 bytes: entry i is the bytes 4 * i to 4 * i + 3. */
static inline float32x4_t fbn_pick(const float *table, float32x4_t x)
{
    uint32x4_t index = vandq_u32(vshrq_n_u32(vreinterpretq_u32_f32(x), 21), vdupq_n_u32(15));
    uint32x4_t bytes = vmlaq_u32(vdupq_n_u32(0x03020100u), index, vdupq_n_u32(0x04040404u));
    uint8x16x4_t entries = vld1q_u8_x4((const uint8_t *)table);
    return vreinterpretq_f32_u8(vqtbl4q_u8(entries, vreinterpretq_u8_u32(bytes)));
}
static inline f32x16 f32x16_pick(const float *table, f32x16 x)
{
    return (f32x16){fbn_pick(table, x.a), fbn_pick(table, x.b), fbn_pick(table, x.c), fbn_pick(table, x.d)};
}
static inline f32x16 f32x16_join(f32x16 x, f32x16 y, int64_t n)
{
    float lanes[16];
    f32x16_store(lanes, x);
    return f32x16_load_tail(lanes, n, y);
}

static inline f64x8 f64x8_set(double x)
{
    float64x2_t v = vdupq_n_f64(x);
    return (f64x8){v, v, v, v};
}
static inline f64x8 f64x8_load(const double *p)
{
    return (f64x8){vld1q_f64(p), vld1q_f64(p + 2), vld1q_f64(p + 4), vld1q_f64(p + 6)};
}
static inline void f64x8_store(double *p, f64x8 v)
{
    vst1q_f64(p, v.a);
    vst1q_f64(p + 2, v.b);
    vst1q_f64(p + 4, v.c);
    vst1q_f64(p + 6, v.d);
}
static inline f64x8 f64x8_load_tail(const double *p, int64_t n, f64x8 fill)
{
    double lanes[8];
    f64x8_store(lanes, fill);
    for (int64_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return f64x8_load(lanes);
}
static inline void f64x8_store_tail(double *p, int64_t n, f64x8 v)
{
    double lanes[8];
    f64x8_store(lanes, v);
    for (int64_t i = 0; i < n; i++)
        p[i] = lanes[i];
}
static inline void f64x8_stream(double *p, f64x8 v) { f64x8_store(p, v); }
static inline f64x8 f64x8_add(f64x8 x, f64x8 y)
{
    return (f64x8){vaddq_f64(x.a, y.a), vaddq_f64(x.b, y.b), vaddq_f64(x.c, y.c), vaddq_f64(x.d, y.d)};
}
static inline f64x8 f64x8_sub(f64x8 x, f64x8 y)
{
    return (f64x8){vsubq_f64(x.a, y.a), vsubq_f64(x.b, y.b), vsubq_f64(x.c, y.c), vsubq_f64(x.d, y.d)};
}
static inline f64x8 f64x8_mul(f64x8 x, f64x8 y)
{
    return (f64x8){vmulq_f64(x.a, y.a), vmulq_f64(x.b, y.b), vmulq_f64(x.c, y.c), vmulq_f64(x.d, y.d)};
}
static inline f64x8 f64x8_div(f64x8 x, f64x8 y)
{
    return (f64x8){vdivq_f64(x.a, y.a), vdivq_f64(x.b, y.b), vdivq_f64(x.c, y.c), vdivq_f64(x.d, y.d)};
}
static inline f64x8 f64x8_less(f64x8 a, f64x8 b, f64x8 x, f64x8 y)
{
    return (f64x8){vbslq_f64(vcltq_f64(a.a, b.a), x.a, y.a), vbslq_f64(vcltq_f64(a.b, b.b), x.b, y.b),
                   vbslq_f64(vcltq_f64(a.c, b.c), x.c, y.c), vbslq_f64(vcltq_f64(a.d, b.d), x.d, y.d)};
}
static inline f64x8 f64x8_magnitude(f64x8 x)
{
    return (f64x8){vabsq_f64(x.a), vabsq_f64(x.b), vabsq_f64(x.c), vabsq_f64(x.d)};
}
static inline f64x8 f64x8_signed_as(f64x8 x, f64x8 s)
{
    return (f64x8){vbslq_f64(vdupq_n_u64(0x8000000000000000ull), s.a, x.a),
                   vbslq_f64(vdupq_n_u64(0x8000000000000000ull), s.b, x.b),
                   vbslq_f64(vdupq_n_u64(0x8000000000000000ull), s.c, x.c),
                   vbslq_f64(vdupq_n_u64(0x8000000000000000ull), s.d, x.d)};
}
static inline f64x8 f64x8_power(f64x8 x)
{
    return (f64x8){vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(x.a), 52)),
                   vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(x.b), 52)),
                   vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(x.c), 52)),
                   vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(x.d), 52))};
}
static inline float64x2_t fbn_head64(float64x2_t x)
{
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x), vdupq_n_u64(0xfffffffff8000000ull)));
}
static inline f64x8 f64x8_head(f64x8 x)
{
    return (f64x8){fbn_head64(x.a), fbn_head64(x.b), fbn_head64(x.c), fbn_head64(x.d)};
}
static inline f64x8 f64x8_join(f64x8 x, f64x8 y, int64_t n)
{
    double lanes[8];
    f64x8_store(lanes, x);
    return f64x8_load_tail(lanes, n, y);
}
static inline f64x8 f64x8_fold(f64x8 x, f64x8 y)
{
    return (f64x8){vaddq_f64(x.a, x.c), vaddq_f64(x.b, x.d), vaddq_f64(y.a, y.c), vaddq_f64(y.b, y.d)};
}

static inline f64x8 f64x8_of_f32(float32x4_t low, float32x4_t high)
{
    return (f64x8){vcvt_f64_f32(vget_low_f32(low)), vcvt_high_f64_f32(low), vcvt_f64_f32(vget_low_f32(high)),
                   vcvt_high_f64_f32(high)};
}
static inline f64x8 f64x8_widen(const float *p) { return f64x8_of_f32(vld1q_f32(p), vld1q_f32(p + 4)); }
static inline f64x8 f64x8_widen_tail(const float *p, int64_t n, f64x8 fill)
{
    double lanes[8];
    f64x8_store(lanes, fill);
    for (int64_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return f64x8_load(lanes);
}
static inline f64x8 f32x16_low(f32x16 v) { return f64x8_of_f32(v.a, v.b); }
static inline f64x8 f32x16_high(f32x16 v) { return f64x8_of_f32(v.c, v.d); }

typedef struct { uint16x4_t a, b, c, d; } u16x16;

static inline u16x16 u16x16_load(const uint16_t *p)
{
    return (u16x16){vld1_u16(p), vld1_u16(p + 4), vld1_u16(p + 8), vld1_u16(p + 12)};
}
static inline void u16x16_store(uint16_t *p, u16x16 v)
{
    vst1_u16(p, v.a);
    vst1_u16(p + 4, v.b);
    vst1_u16(p + 8, v.c);
    vst1_u16(p + 12, v.d);
}
static inline u16x16 u16x16_load_tail(const uint16_t *p, int64_t n)
{
    uint16_t lanes[16] = {0};
    for (int64_t i = 0; i < n; i++)
        lanes[i] = p[i];
    return u16x16_load(lanes);
}
static inline void u16x16_store_tail(uint16_t *p, int64_t n, u16x16 v)
{
    uint16_t lanes[16];
    u16x16_store(lanes, v);
    for (int64_t i = 0; i < n; i++)
        p[i] = lanes[i];
}
static inline void u16x16_stream(uint16_t *p, u16x16 v) { u16x16_store(p, v); }

static inline float32x4_t fbn_of_f16(uint16x4_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
static inline uint16x4_t fbn_to_f16(float32x4_t v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }
static inline float32x4_t fbn_of_bf16(uint16x4_t v) { return vreinterpretq_f32_u32(vshll_n_u16(v, 16)); }
static inline uint16x4_t fbn_to_bf16(float32x4_t v)
{
    uint32x4_t bits = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
    uint32x4_t nan = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, nan), 16);
}
static inline f32x16 f32x16_of_f16(u16x16 v)
{
    return (f32x16){fbn_of_f16(v.a), fbn_of_f16(v.b), fbn_of_f16(v.c), fbn_of_f16(v.d)};
}
static inline u16x16 f32x16_to_f16(f32x16 v)
{
    return (u16x16){fbn_to_f16(v.a), fbn_to_f16(v.b), fbn_to_f16(v.c), fbn_to_f16(v.d)};
}
static inline f32x16 f32x16_of_bf16(u16x16 v)
{
    return (f32x16){fbn_of_bf16(v.a), fbn_of_bf16(v.b), fbn_of_bf16(v.c), fbn_of_bf16(v.d)};
}
static inline u16x16 f32x16_to_bf16(f32x16 v)
{
    return (u16x16){fbn_to_bf16(v.a), fbn_to_bf16(v.b), fbn_to_bf16(v.c), fbn_to_bf16(v.d)};
}
typedef struct { f32x16 even, odd; } f32x16_pair;
static inline f32x16_pair f32x16_pair_of_bf16(const uint16_t *p)
{
    uint16x8x2_t low = vld2q_u16(p), high = vld2q_u16(p + 16);
    u16x16 even = {vget_low_u16(low.val[0]), vget_high_u16(low.val[0]), vget_low_u16(high.val[0]), vget_high_u16(high.val[0])};
    u16x16 odd = {vget_low_u16(low.val[1]), vget_high_u16(low.val[1]), vget_low_u16(high.val[1]), vget_high_u16(high.val[1])};
    return (f32x16_pair){f32x16_of_bf16(even), f32x16_of_bf16(odd)};
}
static inline void f32x16_pair_to_bf16(uint16_t *p, f32x16_pair v, int stream)
{
    u16x16 even = f32x16_to_bf16(v.even), odd = f32x16_to_bf16(v.odd);
    (void)stream;
    vst2q_u16(p, (uint16x8x2_t){{vcombine_u16(even.a, even.b), vcombine_u16(odd.a, odd.b)}});
    vst2q_u16(p + 16, (uint16x8x2_t){{vcombine_u16(even.c, even.d), vcombine_u16(odd.c, odd.d)}});
}

static inline void fbn_prefetch(const void *p) { __builtin_prefetch(p, 0, 2); }
static inline void fbn_prefetch_near(const void *p) { __builtin_prefetch(p, 0, 3); }
static inline void fbn_stream_fence(void) {}

#endif
