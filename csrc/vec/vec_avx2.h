/* vec_avx2.h - 16 floats in two ymm registers, 8 doubles in two. See vec_portable.h for what each operation means. */
#ifndef FBN_VEC_H
#define FBN_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define FBN_MANY_REGISTERS 0

typedef struct { __m256 a, b; } f32x16;
typedef struct { f32x16 even, odd; } f32x16_pair;
typedef struct { __m256d a, b; } f64x8;

/* Opaque: hides from the compiler that a vector is constant, so that it leaves a * 1 - b as it is. */
#if defined(__GNUC__)
#define FBN_OPAQUE(v) __asm__("" : "+x"((v).a))
#define FBN_SETTLE(v) __asm__ __volatile__("" : "+x"((v).a), "+x"((v).b))
#else
#define FBN_OPAQUE(v) (void)0
#define FBN_SETTLE(v) (void)0
#endif
#define f32x16_settle(x) FBN_SETTLE(x)
#define f64x8_settle(x) FBN_SETTLE(x)

/* All ones in the first n of 8 (of 4) lanes; n may be negative or too large. */
static inline __m256i fbn_mask32(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline __m256i fbn_mask64(int64_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
/* A masked load that never forms a pointer past the end of the array: with no lane left it reads from the start. */
static inline __m256 fbn_tail32(const float *p, int64_t skip, int64_t n, __m256 fill)
{
    __m256i mask = fbn_mask32(n - skip);
    __m256 v = _mm256_maskload_ps(n > skip ? p + skip : p, mask);
    return _mm256_blendv_ps(fill, v, _mm256_castsi256_ps(mask));
}
static inline __m256d fbn_tail64(const double *p, int64_t skip, int64_t n, __m256d fill)
{
    __m256i mask = fbn_mask64(n - skip);
    __m256d v = _mm256_maskload_pd(n > skip ? p + skip : p, mask);
    return _mm256_blendv_pd(fill, v, _mm256_castsi256_pd(mask));
}

static inline f32x16 f32x16_set(float a) { return (f32x16){_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
static inline f32x16 f32x16_load(const float *p) { return (f32x16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline f32x16 f32x16_load_tail(const float *p, int64_t n, f32x16 fill)
{
    return (f32x16){fbn_tail32(p, 0, n, fill.a), fbn_tail32(p, 8, n, fill.b)};
}
static inline void f32x16_store(float *p, f32x16 v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
static inline void f32x16_store_tail(float *p, int64_t n, f32x16 v)
{
    _mm256_maskstore_ps(p, fbn_mask32(n), v.a);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, fbn_mask32(n - 8), v.b);
}
static inline void f32x16_stream(float *p, f32x16 v)
{
    _mm256_stream_ps(p, v.a);
    _mm256_stream_ps(p + 8, v.b);
}
static inline f32x16 f32x16_add(f32x16 x, f32x16 y)
{
    return (f32x16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
static inline f32x16 f32x16_sub(f32x16 x, f32x16 y)
{
    return (f32x16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
static inline f32x16 f32x16_mul(f32x16 x, f32x16 y)
{
    return (f32x16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
static inline f32x16 f32x16_div(f32x16 x, f32x16 y)
{
    return (f32x16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
static inline f32x16 f32x16_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y)
{
    return (f32x16){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                    _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
static inline f32x16 f32x16_magnitude(f32x16 x)
{
    return (f32x16){_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.a), _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.b)};
}
static inline f32x16 f32x16_signed_as(f32x16 x, f32x16 s)
{
    f32x16 v = f32x16_magnitude(x);
    return (f32x16){_mm256_or_ps(v.a, _mm256_and_ps(_mm256_set1_ps(-0.0f), s.a)),
                    _mm256_or_ps(v.b, _mm256_and_ps(_mm256_set1_ps(-0.0f), s.b))};
}
static inline f32x16 f32x16_power(f32x16 x)
{
    return (f32x16){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.a), 23)),
                    _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.b), 23))};
}
static inline f32x16 f32x16_head(f32x16 x)
{
    __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(-4096));
    return (f32x16){_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
/* Three bits choose among 8 entries, the fourth between two such choices. */
static inline __m256 fbn_pick(const float *table, __m256 x)
{
    __m256i bits = _mm256_castps_si256(x), index = _mm256_srli_epi32(bits, 21);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index),
                            _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index),
                            _mm256_castsi256_ps(_mm256_slli_epi32(bits, 7)));
}
static inline f32x16 f32x16_pick(const float *table, f32x16 x)
{
    return (f32x16){fbn_pick(table, x.a), fbn_pick(table, x.b)};
}

static inline f32x16 f32x16_one(void)
{
    f32x16 v = f32x16_set(1);
    FBN_OPAQUE(v);
    return v;
}
static inline f32x16 f32x16_diff(f32x16 x, f32x16 one, f32x16 y)
{
    return (f32x16){_mm256_fmsub_ps(x.a, one.a, y.a), _mm256_fmsub_ps(x.b, one.a, y.b)};
}
static inline f32x16 f32x16_join(f32x16 x, f32x16 y, int64_t n)
{
    return (f32x16){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(fbn_mask32(n))),
                    _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(fbn_mask32(n - 8)))};
}

static inline f64x8 f64x8_set(double a) { return (f64x8){_mm256_set1_pd(a), _mm256_set1_pd(a)}; }
static inline f64x8 f64x8_load(const double *p) { return (f64x8){_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
static inline f64x8 f64x8_load_tail(const double *p, int64_t n, f64x8 fill)
{
    return (f64x8){fbn_tail64(p, 0, n, fill.a), fbn_tail64(p, 4, n, fill.b)};
}
static inline void f64x8_store(double *p, f64x8 v)
{
    _mm256_storeu_pd(p, v.a);
    _mm256_storeu_pd(p + 4, v.b);
}
static inline void f64x8_store_tail(double *p, int64_t n, f64x8 v)
{
    _mm256_maskstore_pd(p, fbn_mask64(n), v.a);
    if (n > 4)
        _mm256_maskstore_pd(p + 4, fbn_mask64(n - 4), v.b);
}
static inline void f64x8_stream(double *p, f64x8 v)
{
    _mm256_stream_pd(p, v.a);
    _mm256_stream_pd(p + 4, v.b);
}
static inline f64x8 f64x8_add(f64x8 x, f64x8 y)
{
    return (f64x8){_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)};
}
static inline f64x8 f64x8_sub(f64x8 x, f64x8 y)
{
    return (f64x8){_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)};
}
static inline f64x8 f64x8_mul(f64x8 x, f64x8 y)
{
    return (f64x8){_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)};
}
static inline f64x8 f64x8_div(f64x8 x, f64x8 y)
{
    return (f64x8){_mm256_div_pd(x.a, y.a), _mm256_div_pd(x.b, y.b)};
}
static inline f64x8 f64x8_less(f64x8 a, f64x8 b, f64x8 x, f64x8 y)
{
    return (f64x8){_mm256_blendv_pd(y.a, x.a, _mm256_cmp_pd(a.a, b.a, _CMP_LT_OQ)),
                   _mm256_blendv_pd(y.b, x.b, _mm256_cmp_pd(a.b, b.b, _CMP_LT_OQ))};
}
static inline f64x8 f64x8_magnitude(f64x8 x)
{
    return (f64x8){_mm256_andnot_pd(_mm256_set1_pd(-0.0), x.a), _mm256_andnot_pd(_mm256_set1_pd(-0.0), x.b)};
}
static inline f64x8 f64x8_signed_as(f64x8 x, f64x8 s)
{
    f64x8 v = f64x8_magnitude(x);
    return (f64x8){_mm256_or_pd(v.a, _mm256_and_pd(_mm256_set1_pd(-0.0), s.a)),
                   _mm256_or_pd(v.b, _mm256_and_pd(_mm256_set1_pd(-0.0), s.b))};
}
static inline f64x8 f64x8_power(f64x8 x)
{
    return (f64x8){_mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(x.a), 52)),
                   _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(x.b), 52))};
}
static inline f64x8 f64x8_head(f64x8 x)
{
    __m256d mask = _mm256_castsi256_pd(_mm256_set1_epi64x(-134217728));
    return (f64x8){_mm256_and_pd(x.a, mask), _mm256_and_pd(x.b, mask)};
}

static inline f64x8 f64x8_one(void)
{
    f64x8 v = f64x8_set(1);
    FBN_OPAQUE(v);
    return v;
}
static inline f64x8 f64x8_diff(f64x8 x, f64x8 one, f64x8 y)
{
    return (f64x8){_mm256_fmsub_pd(x.a, one.a, y.a), _mm256_fmsub_pd(x.b, one.a, y.b)};
}
static inline f64x8 f64x8_join(f64x8 x, f64x8 y, int64_t n)
{
    return (f64x8){_mm256_blendv_pd(y.a, x.a, _mm256_castsi256_pd(fbn_mask64(n))),
                   _mm256_blendv_pd(y.b, x.b, _mm256_castsi256_pd(fbn_mask64(n - 4)))};
}
static inline f64x8 f64x8_fold(f64x8 x, f64x8 y) { return (f64x8){_mm256_add_pd(x.a, x.b), _mm256_add_pd(y.a, y.b)}; }

static inline f64x8 f64x8_of_f32(__m256 v)
{
    return (f64x8){_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
static inline f64x8 f64x8_widen(const float *p) { return f64x8_of_f32(_mm256_loadu_ps(p)); }
static inline f64x8 f64x8_widen_tail(const float *p, int64_t n, f64x8 fill)
{
    f64x8 v = f64x8_of_f32(fbn_tail32(p, 0, n, _mm256_setzero_ps()));
    return (f64x8){_mm256_blendv_pd(fill.a, v.a, _mm256_castsi256_pd(fbn_mask64(n))),
                   _mm256_blendv_pd(fill.b, v.b, _mm256_castsi256_pd(fbn_mask64(n - 4)))};
}
static inline f64x8 f32x16_low(f32x16 v) { return f64x8_of_f32(v.a); }
static inline f64x8 f32x16_high(f32x16 v) { return f64x8_of_f32(v.b); }

typedef __m256i u16x16;

/* There are masks for pairs only: an odd last entry goes alone. */
static inline u16x16 u16x16_load_tail(const uint16_t *p, int64_t n)
{
    __m256i pairs = _mm256_maskload_epi32((const int *)p, fbn_mask32(n / 2)), last = _mm256_set1_epi16((short)p[n - 1]);
    __m256i lane = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm256_blendv_epi8(pairs, last, _mm256_cmpeq_epi16(lane, _mm256_set1_epi16((short)(n - 1))));
}
static inline u16x16 u16x16_load(const uint16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void u16x16_store(uint16_t *p, u16x16 v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline void u16x16_store_tail(uint16_t *p, int64_t n, u16x16 v)
{
    uint16_t lanes[16];
    u16x16_store(lanes, v);
    _mm256_maskstore_epi32((int *)p, fbn_mask32(n / 2), v);
    p[n - 1] = lanes[n - 1];
}
static inline void u16x16_stream(uint16_t *p, u16x16 v) { _mm256_stream_si256((__m256i *)p, v); }

static inline __m128i fbn_low16(u16x16 v) { return _mm256_castsi256_si128(v); }
static inline __m128i fbn_high16(u16x16 v) { return _mm256_extracti128_si256(v, 1); }
static inline f32x16 f32x16_of_f16(u16x16 v)
{
    return (f32x16){_mm256_cvtph_ps(fbn_low16(v)), _mm256_cvtph_ps(fbn_high16(v))};
}
static inline u16x16 f32x16_to_f16(f32x16 v)
{
    return _mm256_set_m128i(_mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                            _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256 fbn_of_bf16(__m128i v)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
static inline f32x16 f32x16_of_bf16(u16x16 v)
{
    return (f32x16){fbn_of_bf16(fbn_low16(v)), fbn_of_bf16(fbn_high16(v))};
}
/* Leaves the rounded value in the upper half of each float. */
static inline __m256i fbn_round_to_bf16(__m256 v)
{
    __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(nan),
                                                _mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
static inline __m256i fbn_to_bf16(__m256 v) { return _mm256_srli_epi32(fbn_round_to_bf16(v), 16); }
static inline u16x16 f32x16_to_bf16(f32x16 v)
{
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(fbn_to_bf16(v.a), fbn_to_bf16(v.b)), 0xd8);
}
static inline __m256 fbn_even_of_bf16(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
static inline __m256 fbn_odd_of_bf16(__m256i words)
{
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)0xffff0000)));
}
static inline f32x16_pair f32x16_pair_of_bf16(const uint16_t *p)
{
    __m256i low = u16x16_load(p), high = u16x16_load(p + 16);
    return (f32x16_pair){{fbn_even_of_bf16(low), fbn_even_of_bf16(high)}, {fbn_odd_of_bf16(low), fbn_odd_of_bf16(high)}};
}
static inline __m256i fbn_pair_to_bf16(__m256 even, __m256 odd)
{
    return _mm256_blend_epi16(fbn_to_bf16(even), fbn_round_to_bf16(odd), 0xaa);
}
static inline void f32x16_pair_to_bf16(uint16_t *p, f32x16_pair v, int stream)
{
    __m256i low = fbn_pair_to_bf16(v.even.a, v.odd.a), high = fbn_pair_to_bf16(v.even.b, v.odd.b);
    if (stream) {
        u16x16_stream(p, low);
        u16x16_stream(p + 16, high);
    } else {
        u16x16_store(p, low);
        u16x16_store(p + 16, high);
    }
}

#if defined(__GNUC__) /* gcc 12 takes a function that only calls _mm_prefetch for one without effect, and drops it */
#define fbn_prefetch(p) __builtin_prefetch((p), 0, 2)
#define fbn_prefetch_near(p) __builtin_prefetch((p), 0, 3)
#else
#define fbn_prefetch(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#define fbn_prefetch_near(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#endif
static inline void fbn_stream_fence(void) { _mm_sfence(); }

#endif
