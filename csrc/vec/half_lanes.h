/* half_lanes.h - 16 values of a half type, converted one by one. Included after its f32x16 by a header that has nothing
 * better. Compilers make vectors of the loops, and these are too long to be copied into every kernel. */
#ifndef FBN_HALF_LANES_H
#define FBN_HALF_LANES_H

#include "half.h"

#if defined(__GNUC__)
#define FBN_CONVERSION static __attribute__((noinline))
#else
#define FBN_CONVERSION static __declspec(noinline)
#endif

typedef struct { uint16_t v[16]; } u16x16;

static inline u16x16 u16x16_load(const uint16_t *p)
{
    u16x16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline u16x16 u16x16_load_tail(const uint16_t *p, int64_t n)
{
    u16x16 r = {{0}};
    memcpy(&r, p, (size_t)n * sizeof *p);
    return r;
}
static inline void u16x16_store(uint16_t *p, u16x16 a) { memcpy(p, &a, sizeof a); }
static inline void u16x16_store_tail(uint16_t *p, int64_t n, u16x16 a) { memcpy(p, &a, (size_t)n * sizeof *p); }
static inline void u16x16_stream(uint16_t *p, u16x16 a) { u16x16_store(p, a); }

#define FBN_CONVERSIONS(type)                               \
    FBN_CONVERSION f32x16 f32x16_of_##type(u16x16 a)        \
    {                                                       \
        float lanes[16];                                    \
        for (int i = 0; i < 16; i++)                        \
            lanes[i] = fbn_float_of_##type(a.v[i]);         \
        return f32x16_load(lanes);                          \
    }                                                       \
    FBN_CONVERSION u16x16 f32x16_to_##type(f32x16 a)        \
    {                                                       \
        float lanes[16];                                    \
        u16x16 r;                                           \
        f32x16_store(lanes, a);                             \
        for (int i = 0; i < 16; i++)                        \
            r.v[i] = fbn_##type##_of_float(lanes[i]);       \
        return r;                                           \
    }

FBN_CONVERSIONS(f16)
FBN_CONVERSIONS(bf16)

typedef struct { f32x16 even, odd; } f32x16_pair;

FBN_CONVERSION f32x16_pair f32x16_pair_of_bf16(const uint16_t *p)
{
    float even[16], odd[16];
    for (int i = 0; i < 16; i++) {
        even[i] = fbn_float_of_bf16(p[2 * i]);
        odd[i] = fbn_float_of_bf16(p[2 * i + 1]);
    }
    return (f32x16_pair){f32x16_load(even), f32x16_load(odd)};
}
FBN_CONVERSION void f32x16_pair_to_bf16(uint16_t *p, f32x16_pair a, int stream)
{
    float even[16], odd[16];
    (void)stream;
    f32x16_store(even, a.even);
    f32x16_store(odd, a.odd);
    for (int i = 0; i < 16; i++) {
        p[2 * i] = fbn_bf16_of_float(even[i]);
        p[2 * i + 1] = fbn_bf16_of_float(odd[i]);
    }
}

#endif
