/* vec_avx512.h - 16 floats in one zmm register, 8 doubles in one. See vec_portable.h for what each operation means. */
#ifndef FBN_VEC_H
#define FBN_VEC_H

#include <immintrin.h>
#include <stdint.h>

/* Opaque: hides from the compiler that a vector is constant, so that it leaves a * 1 - b as it is. */
#if defined(__GNUC__)
#define FBN_OPAQUE(v) __asm__("" : "+v"(v))
#define FBN_SETTLE(v) __asm__ __volatile__("" : "+v"(v))
#else
#define FBN_OPAQUE(v) (void)0
#define FBN_SETTLE(v) (void)0
#endif
#define f32x16_settle(x) FBN_SETTLE(x)
#define f64x8_settle(x) FBN_SETTLE(x)

#define FBN_MANY_REGISTERS 1

typedef __m512 f32x16;
typedef struct { f32x16 even, odd; } f32x16_pair;
typedef __m512d f64x8;

static inline __mmask16 fbn_mask16(int64_t n) { return (__mmask16)((1u << n) - 1u); }
static inline __mmask8 fbn_mask8(int64_t n) { return (__mmask8)((1u << n) - 1u); }

static inline f32x16 f32x16_set(float a) { return _mm512_set1_ps(a); }
static inline f32x16 f32x16_load(const float *p) { return _mm512_loadu_ps(p); }
static inline f32x16 f32x16_load_tail(const float *p, int64_t n, f32x16 fill)
{
    return _mm512_mask_loadu_ps(fill, fbn_mask16(n), p);
}
static inline void f32x16_store(float *p, f32x16 v) { _mm512_storeu_ps(p, v); }
static inline void f32x16_store_tail(float *p, int64_t n, f32x16 v) { _mm512_mask_storeu_ps(p, fbn_mask16(n), v); }
static inline void f32x16_stream(float *p, f32x16 v) { _mm512_stream_ps(p, v); }
static inline f32x16 f32x16_add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
static inline f32x16 f32x16_sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
static inline f32x16 f32x16_mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
static inline f32x16 f32x16_div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
static inline f32x16 f32x16_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline f32x16 f32x16_magnitude(f32x16 a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
static inline f32x16 f32x16_signed_as(f32x16 a, f32x16 s)
{
    return _mm512_or_ps(f32x16_magnitude(a), _mm512_and_ps(_mm512_set1_ps(-0.0f), s));
}
static inline f32x16 f32x16_power(f32x16 a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23));
}

static inline f32x16 f32x16_head(f32x16 a)
{
    return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(-4096)));
}
static inline f32x16 f32x16_pick(const float *table, f32x16 a)
{
    return _mm512_permutexvar_ps(_mm512_srli_epi32(_mm512_castps_si512(a), 21), _mm512_loadu_ps(table));
}

static inline f32x16 f32x16_one(void)
{
    f32x16 v = f32x16_set(1);
    FBN_OPAQUE(v);
    return v;
}
static inline f32x16 f32x16_diff(f32x16 a, f32x16 one, f32x16 b) { return _mm512_fmsub_ps(a, one, b); }
static inline f32x16 f32x16_join(f32x16 a, f32x16 b, int64_t n) { return _mm512_mask_blend_ps(fbn_mask16(n), b, a); }

static inline f64x8 f64x8_set(double a) { return _mm512_set1_pd(a); }
static inline f64x8 f64x8_load(const double *p) { return _mm512_loadu_pd(p); }
static inline f64x8 f64x8_load_tail(const double *p, int64_t n, f64x8 fill)
{
    return _mm512_mask_loadu_pd(fill, fbn_mask8(n), p);
}
static inline void f64x8_store(double *p, f64x8 v) { _mm512_storeu_pd(p, v); }
static inline void f64x8_store_tail(double *p, int64_t n, f64x8 v) { _mm512_mask_storeu_pd(p, fbn_mask8(n), v); }
static inline void f64x8_stream(double *p, f64x8 v) { _mm512_stream_pd(p, v); }
static inline f64x8 f64x8_add(f64x8 a, f64x8 b) { return _mm512_add_pd(a, b); }
static inline f64x8 f64x8_sub(f64x8 a, f64x8 b) { return _mm512_sub_pd(a, b); }
static inline f64x8 f64x8_mul(f64x8 a, f64x8 b) { return _mm512_mul_pd(a, b); }
static inline f64x8 f64x8_div(f64x8 a, f64x8 b) { return _mm512_div_pd(a, b); }
static inline f64x8 f64x8_less(f64x8 a, f64x8 b, f64x8 x, f64x8 y)
{
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
}
static inline f64x8 f64x8_magnitude(f64x8 a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a); }
static inline f64x8 f64x8_signed_as(f64x8 a, f64x8 s)
{
    return _mm512_or_pd(f64x8_magnitude(a), _mm512_and_pd(_mm512_set1_pd(-0.0), s));
}
static inline f64x8 f64x8_power(f64x8 a)
{
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(a), 52));
}

static inline f64x8 f64x8_head(f64x8 a)
{
    return _mm512_and_pd(a, _mm512_castsi512_pd(_mm512_set1_epi64(-134217728)));
}

static inline f64x8 f64x8_one(void)
{
    f64x8 v = f64x8_set(1);
    FBN_OPAQUE(v);
    return v;
}
static inline f64x8 f64x8_diff(f64x8 a, f64x8 one, f64x8 b) { return _mm512_fmsub_pd(a, one, b); }
static inline f64x8 f64x8_join(f64x8 a, f64x8 b, int64_t n) { return _mm512_mask_blend_pd(fbn_mask8(n), b, a); }
static inline f64x8 f64x8_fold(f64x8 a, f64x8 b)
{
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee));
}

static inline f64x8 f64x8_widen(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
static inline f64x8 f64x8_widen_tail(const float *p, int64_t n, f64x8 fill)
{
    return _mm512_mask_cvtps_pd(fill, fbn_mask8(n), _mm256_maskz_loadu_ps(fbn_mask8(n), p));
}
static inline f64x8 f32x16_low(f32x16 v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
static inline f64x8 f32x16_high(f32x16 v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }

typedef __m256i u16x16;

static inline u16x16 u16x16_load(const uint16_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline u16x16 u16x16_load_tail(const uint16_t *p, int64_t n)
{
    return _mm256_maskz_loadu_epi16(fbn_mask16(n), p);
}
static inline void u16x16_store(uint16_t *p, u16x16 v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline void u16x16_store_tail(uint16_t *p, int64_t n, u16x16 v)
{
    _mm256_mask_storeu_epi16(p, fbn_mask16(n), v);
}
static inline void u16x16_stream(uint16_t *p, u16x16 v) { _mm256_stream_si256((__m256i *)p, v); }

static inline f32x16 f32x16_of_f16(u16x16 v) { return _mm512_cvtph_ps(v); }
static inline u16x16 f32x16_to_f16(f32x16 v)
{
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* The upper halves of 16 floats: word 2 i + 1 of 32. */
static inline __m512i fbn_upper_words(void)
{
    return _mm512_setr_epi32(0x30001, 0x70005, 0xb0009, 0xf000d, 0x130011, 0x170015, 0x1b0019, 0x1f001d, 0, 0, 0, 0, 0,
                             0, 0, 0);
}
static inline f32x16 f32x16_of_bf16(u16x16 v)
{
    const __m512i words = _mm512_setr_epi32(0, 0x10000, 0x20000, 0x30000, 0x40000, 0x50000, 0x60000, 0x70000, 0x80000,
                                            0x90000, 0xa0000, 0xb0000, 0xc0000, 0xd0000, 0xe0000, 0xf0000);
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, words, _mm512_castsi256_si512(v)));
}
/* Half a unit is added, or a bit less where the last digit is even; then the upper half is the result. A NaN
 * gives the upper half of the NaN itself, made quiet (2 in fixupimm's table, for both kinds of NaN), as a carry would
 * destroy it. */
static inline __m512i fbn_round_to_bf16(f32x16 v)
{
    __m512i bits = _mm512_castps_si512(v), rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    rounded = _mm512_mask_add_epi32(rounded, odd, rounded, _mm512_set1_epi32(1));
    return _mm512_castps_si512(_mm512_fixupimm_ps(_mm512_castsi512_ps(rounded), v, _mm512_set1_epi32(0x22), 0));
}
static inline u16x16 f32x16_to_bf16(f32x16 v)
{
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(fbn_upper_words(), fbn_round_to_bf16(v)));
}
static inline f32x16_pair f32x16_pair_of_bf16(const uint16_t *p)
{
    __m512i words = _mm512_loadu_si512(p);
    return (f32x16_pair){_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
                         _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xffff0000)))};
}
static inline void f32x16_pair_to_bf16(uint16_t *p, f32x16_pair v, int stream)
{
    __m512i even = _mm512_srli_epi32(fbn_round_to_bf16(v.even), 16);
    __m512i words = _mm512_mask_mov_epi16(even, 0xaaaaaaaa, fbn_round_to_bf16(v.odd));
    if (stream)
        _mm512_stream_si512((void *)p, words);
    else
        _mm512_storeu_si512(p, words);
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
