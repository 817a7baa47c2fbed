/* half.h - float16 and bfloat16 by bit operations, one value at a time: exact to float, and back rounded to nearest
 * even, with subnormals; too large becomes Inf, and a NaN stays a NaN. For machines without conversions, and where a
 * single value is wanted. After F. Giesen, "float->half variants" (2012). Compilers can make vectors of loops over them.
 */
#ifndef FBN_HALF_H
#define FBN_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t fbn_bits_of_float(float a)
{
    uint32_t bits;
    memcpy(&bits, &a, sizeof bits);
    return bits;
}

static inline float fbn_float_of_bits(uint32_t bits)
{
    float a;
    memcpy(&a, &bits, sizeof a);
    return a;
}

/* The exponent of a normal value grows by 127 - 15, that of Inf and NaN by twice as much. A subnormal one counts units
 * of 2^-24, which as the last bits of 2^-14 are a float whose difference from 2^-14 is the value. */
static inline float fbn_float_of_f16(uint16_t a)
{
    const uint32_t bias = (uint32_t)(127 - 15) << 23, magnitude = (uint32_t)(a & 0x7fff) << 13;
    uint32_t normal = magnitude + bias, special = magnitude + 2 * bias;
    uint32_t small = fbn_bits_of_float(fbn_float_of_bits(magnitude + bias + (1u << 23)) - 0x1p-14f);
    uint32_t bits = magnitude < 1u << 23 ? small : magnitude >= 31u << 23 ? special : normal;
    return fbn_float_of_bits(bits | (uint32_t)(a & 0x8000) << 16);
}

/* Adding 1/2 to a value below 2^-14 leaves its units of 2^-24 in the last bits of the float, rounded. */
static inline uint16_t fbn_f16_of_float(float a)
{
    const uint32_t bias = (uint32_t)(127 - 15) << 23, infinity = 0x7f800000;
    uint32_t all = fbn_bits_of_float(a), bits = all & 0x7fffffff;
    uint32_t small = fbn_bits_of_float(fbn_float_of_bits(bits) + 0.5f) - fbn_bits_of_float(0.5f);
    uint32_t normal = (bits - bias + 0xfff + (bits >> 13 & 1)) >> 13;
    uint32_t special = bits > infinity ? 0x7e00 | (bits >> 13 & 0x1ff) : 0x7c00;
    uint32_t half = bits < (uint32_t)(127 - 14) << 23 ? small : bits >= (uint32_t)(127 + 16) << 23 ? special : normal;
    return (uint16_t)(half | (all >> 16 & 0x8000));
}

static inline float fbn_float_of_bf16(uint16_t a) { return fbn_float_of_bits((uint32_t)a << 16); }

static inline uint16_t fbn_bf16_of_float(float a)
{
    uint32_t bits = fbn_bits_of_float(a);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1), nan = bits | 0x400000;
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded) >> 16);
}

#endif
