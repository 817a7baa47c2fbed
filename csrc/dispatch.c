/* dispatch.c - what the processor can do, FASTBN_ISA, and one atomic pointer to the table of kernels in use.
 *
 * FBN_HAVE_AVX2, FBN_HAVE_AVX512 and FBN_HAVE_NEON come from the build, which knows for which sets it compiled kernels.
 * Two threads that make the first call together choose the same table, so that the race between them is harmless.
 */
#include "kernels.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static int always(void) { return 1; }

#if defined(FBN_HAVE_AVX2) || defined(FBN_HAVE_AVX512)
#if defined(_MSC_VER)
#include <intrin.h>

/* EBX of leaf 7. It is 0 without FMA and F16C, or where the system does not save the registers named by xcr0_mask. */
static unsigned features(unsigned long long xcr0_mask)
{
    int leaf[4];
    __cpuid(leaf, 1);
    if (!(leaf[2] & (1 << 27)) || !(leaf[2] & (1 << 12)) || !(leaf[2] & (1 << 29)) || (_xgetbv(0) & xcr0_mask) != xcr0_mask)
        return 0;
    __cpuidex(leaf, 7, 0);
    return (unsigned)leaf[1];
}
static int has_avx2(void) { return (features(0x6) >> 5) & 1; }
static int has_avx512(void)
{
    unsigned wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    return (features(0xe6) & wanted) == wanted;
}
#else
#include <cpuid.h>

/* Asks the processor itself, since not every compiler's __builtin_cpu_supports knows f16c. */
static int has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx >> 29 & 1);
}
static int has_avx2(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
static int has_avx512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
#endif

struct isa {
    const char *name;
    const struct fbn_kernels *kernels; /* NULL: not built */
    int (*supported)(void);
};

extern const struct fbn_kernels fbn_kernels_avx512, fbn_kernels_avx2, fbn_kernels_neon, fbn_kernels_generic;

/* The best comes first. */
static const struct isa isas[] = {
#ifdef FBN_HAVE_AVX512
    {"avx512", &fbn_kernels_avx512, has_avx512},
#else
    {"avx512", NULL, NULL},
#endif
#ifdef FBN_HAVE_AVX2
    {"avx2", &fbn_kernels_avx2, has_avx2},
#else
    {"avx2", NULL, NULL},
#endif
#ifdef FBN_HAVE_NEON
    {"neon", &fbn_kernels_neon, always},
#else
    {"neon", NULL, NULL},
#endif
    {"generic", &fbn_kernels_generic, always},
};
enum { ISAS = sizeof isas / sizeof isas[0] };

static _Atomic(const struct fbn_kernels *) active = NULL;

static const struct isa *find(const char *name)
{
    for (int i = 0; i < ISAS; i++)
        if (name && strcmp(isas[i].name, name) == 0)
            return &isas[i];
    return NULL;
}

static int usable(const struct isa *isa) { return isa && isa->kernels && isa->supported(); }

/* Chooses the best where name is NULL or empty. */
static fastbn_status choose(const char *name, const struct fbn_kernels **kernels)
{
    const struct isa *isa = isas;
    if (name && *name) {
        isa = find(name);
        if (!isa)
            return FASTBN_ERROR_ISA_UNKNOWN;
        if (!usable(isa))
            return FASTBN_ERROR_ISA_UNSUPPORTED;
    }
    while (!usable(isa))
        isa++;
    *kernels = isa->kernels;
    return FASTBN_OK;
}

fastbn_status fastbn_set_isa(const char *name)
{
    const struct fbn_kernels *kernels;
    fastbn_status status = choose(name ? name : getenv("FASTBN_ISA"), &kernels);
    if (status == FASTBN_OK)
        atomic_store_explicit(&active, kernels, memory_order_release);
    return status;
}

fastbn_status fbn_kernels_active(const struct fbn_kernels **kernels)
{
    *kernels = atomic_load_explicit(&active, memory_order_acquire);
    if (*kernels)
        return FASTBN_OK;
    fastbn_status status = fastbn_set_isa(NULL);
    *kernels = atomic_load_explicit(&active, memory_order_acquire);
    return status;
}

fastbn_status fastbn_isa_active(const char **name)
{
    const struct fbn_kernels *kernels;
    if (!name)
        return FASTBN_ERROR_NULL;
    fastbn_status status = fbn_kernels_active(&kernels);
    *name = status == FASTBN_OK ? kernels->isa : NULL;
    return status;
}

const char *fastbn_isa_name(int index) { return index >= 0 && index < ISAS ? isas[index].name : NULL; }

int fastbn_isa_built(const char *name)
{
    const struct isa *isa = find(name);
    return isa && isa->kernels;
}

int fastbn_isa_supported(const char *name) { return usable(find(name)); }
