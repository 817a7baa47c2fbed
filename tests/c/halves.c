/* float16 and bfloat16: conversions of the test's own, by search instead of bit tricks, and every value of the core's
 * against them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "kernels.h"

int is_half(fastbn_dtype dtype) { return dtype == FASTBN_FLOAT16 || dtype == FASTBN_BFLOAT16; }

static double power_of_two(int exponent)
{
    double value = 1;
    for (; exponent > 0; exponent--)
        value *= 2;
    for (; exponent < 0; exponent++)
        value /= 2;
    return value;
}

/* The value of a pattern; that of Inf and NaN as if the largest exponent were one like the others. */
static double unbounded_value(fastbn_dtype dtype, uint16_t bits)
{
    int digits = dtype == FASTBN_FLOAT16 ? 10 : 7, bias = dtype == FASTBN_FLOAT16 ? 15 : 127;
    int exponent = (bits & 0x7fff) >> digits, fraction = bits & ((1 << digits) - 1);
    double value = exponent ? (1 << digits) + fraction : fraction;
    value *= power_of_two((exponent ? exponent : 1) - bias - digits);
    return bits & 0x8000 ? -value : value;
}

static uint16_t infinity_of(fastbn_dtype dtype) { return dtype == FASTBN_FLOAT16 ? 0x7c00 : 0x7f80; }

double half_value(fastbn_dtype dtype, uint16_t bits)
{
    uint16_t magnitude = bits & 0x7fff;
    if (magnitude > infinity_of(dtype))
        return NAN;
    if (magnitude == infinity_of(dtype))
        return bits & 0x8000 ? -INFINITY : INFINITY;
    return unbounded_value(dtype, bits);
}

/* Rounded to nearest even: patterns of positive values grow with them, and beyond the last one comes Inf. */
uint16_t nearest_half(fastbn_dtype dtype, double value)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0, least = 0, most = infinity_of(dtype);
    double magnitude = fabs(value);
    if (value != value)
        return infinity_of(dtype) + 1;
    if (magnitude >= unbounded_value(dtype, most))
        return sign | most;
    while (most - least > 1) {
        uint16_t middle = (uint16_t)((least + most) / 2);
        if (unbounded_value(dtype, middle) <= magnitude)
            least = middle;
        else
            most = middle;
    }
    double below = magnitude - unbounded_value(dtype, least), above = unbounded_value(dtype, most) - magnitude;
    int up = below > above || (below == above && least % 2);
    return sign | (up ? most : least);
}

static int same_half(fastbn_dtype dtype, uint16_t a, uint16_t b)
{
    return a == b || (half_value(dtype, a) != half_value(dtype, a) && half_value(dtype, b) != half_value(dtype, b));
}

enum { PATTERNS = 65536, CASES = 7 };

static int every_pattern(const struct fbn_kernels *kernels, fastbn_dtype dtype)
{
    static uint16_t x[PATTERNS], back[PATTERNS];
    static float lanes[PATTERNS];
    int failures = 0;
    for (int i = 0; i < PATTERNS; i++)
        x[i] = (uint16_t)i;
    kernels->typed[dtype].to_lanes(x, lanes, PATTERNS);
    kernels->typed[dtype].from_lanes(lanes, back, PATTERNS, 0);
    for (int i = 0; i < PATTERNS && failures < 5; i++) {
        double value = half_value(dtype, x[i]);
        if (value == value ? lanes[i] != value || !signbit(lanes[i]) != !signbit(value) : lanes[i] == lanes[i])
            failures += failure("%s: half type %d, pattern %04x becomes %.9g", kernels->isa, (int)dtype, i, lanes[i]);
        if (!same_half(dtype, back[i], x[i]))
            failures += failure("%s: half type %d, %04x comes back as %04x", kernels->isa, (int)dtype, i, back[i]);
    }
    return failures;
}

/* Around each value and each point halfway to the next, where rounding turns. */
static void fill_cases(fastbn_dtype dtype, uint16_t bits, float a[CASES])
{
    float here = (float)unbounded_value(dtype, bits), next = (float)unbounded_value(dtype, (uint16_t)(bits + 1));
    float halfway = here + (next - here) / 2;
    const float all[CASES] = {here, nextafterf(here, -INFINITY), nextafterf(here, INFINITY), halfway,
                              nextafterf(halfway, -INFINITY), nextafterf(halfway, INFINITY), -halfway};
    memcpy(a, all, sizeof all);
}

static int every_rounding(const struct fbn_kernels *kernels, fastbn_dtype dtype)
{
    int failures = 0, most = infinity_of(dtype);
    for (int bits = 0; bits < most && failures < 5; bits++) {
        float a[CASES];
        uint16_t rounded[CASES];
        fill_cases(dtype, (uint16_t)bits, a);
        kernels->typed[dtype].from_lanes(a, rounded, CASES, 0);
        for (int i = 0; i < CASES; i++)
            if (rounded[i] != nearest_half(dtype, a[i]))
                failures += failure("%s: half type %d, %a becomes %04x, expected %04x", kernels->isa, (int)dtype, a[i],
                                    rounded[i], nearest_half(dtype, a[i]));
    }
    return failures;
}

/* Whatever its bits, a NaN never becomes Inf; what is too large does. */
static int special_values(const struct fbn_kernels *kernels, fastbn_dtype dtype)
{
    static const uint32_t patterns[] = {0x7f800001, 0x7f801000, 0x7fbfffff, 0x7fc00000, 0x7fffffff, 0xffffffff,
                                        0xff800001, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff, 0x00000001,
                                        0x807fffff, 0x00000000, 0x80000000, 0x477ff000, 0x477fefff, 0xc77ff000};
    enum { COUNT = sizeof patterns / sizeof *patterns };
    float a[COUNT];
    uint16_t rounded[COUNT];
    int failures = 0;
    memcpy(a, patterns, sizeof patterns);
    kernels->typed[dtype].from_lanes(a, rounded, COUNT, 0);
    for (int i = 0; i < COUNT; i++)
        if (!same_half(dtype, rounded[i], nearest_half(dtype, a[i])))
            failures += failure("%s: half type %d, float %08lx becomes %04x", kernels->isa, (int)dtype,
                                (unsigned long)patterns[i], rounded[i]);
    return failures;
}

/* Any length at any place, of every type: nothing else is written. */
static int every_length(const struct fbn_kernels *kernels, fastbn_dtype dtype, int64_t n, int64_t offset, int stream)
{
    enum { LENGTH = 420 };
    size_t size = type_size(dtype), lane = dtype == FASTBN_FLOAT64 ? sizeof(double) : sizeof(float);
    unsigned char *x = allocate(LENGTH * size), *y = allocate(LENGTH * size), *lanes = allocate(LENGTH * lane);
    int failures = 0;
    memset(x, 0, LENGTH * size);
    for (int64_t i = 0; i < n; i++)
        x[(size_t)(offset + i) * size + size - 1] = (unsigned char)(i % 100 + 1);
    memset(y, 0, LENGTH * size);
    memset(lanes, 0xA5, LENGTH * lane);
    kernels->typed[dtype].to_lanes(x + (size_t)offset * size, lanes + lane, n);
    kernels->typed[dtype].from_lanes(lanes + lane, y + (size_t)offset * size, n, stream);
    kernels->stream_fence();
    if (memcmp(x, y, LENGTH * size) != 0 || lanes[lane - 1] != 0xA5 || lanes[(size_t)(n + 1) * lane] != 0xA5)
        failures += failure("%s: type %d, %lld entries %lld off a line as lanes and back", kernels->isa, (int)dtype,
                            (long long)n, (long long)offset);
    free(x);
    free(y);
    free(lanes);
    return failures;
}

static int check_lanes(const struct fbn_kernels *kernels, fastbn_dtype dtype)
{
    static const int64_t lengths[] = {0, 1, 7, 8, 15, 16, 17, 31, 33, 100, 256, 300, 333};
    int failures = 0;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        for (int64_t offset = 0; offset < 40; offset += 3)
            failures += every_length(kernels, dtype, lengths[i], offset, 0)
                        + every_length(kernels, dtype, lengths[i], offset, 1);
    return failures;
}

int check_halves(void)
{
    int failures = 0;
    for (int i = 0; fastbn_isa_name(i) != NULL; i++) {
        const struct fbn_kernels *kernels;
        if (fastbn_set_isa(fastbn_isa_name(i)) != FASTBN_OK || fbn_kernels_active(&kernels) != FASTBN_OK)
            continue;
        for (int dtype = FASTBN_FLOAT32; dtype <= FASTBN_BFLOAT16; dtype++) {
            failures += check_lanes(kernels, (fastbn_dtype)dtype);
            if (is_half((fastbn_dtype)dtype))
                failures += every_pattern(kernels, (fastbn_dtype)dtype) + every_rounding(kernels, (fastbn_dtype)dtype)
                            + special_values(kernels, (fastbn_dtype)dtype);
        }
    }
    fastbn_set_isa(NULL);
    return failures;
}
