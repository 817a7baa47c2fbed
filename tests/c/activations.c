/* The kernels of the activations, which hold no state and know no layout: one hash for each function and type. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "harness.h"

enum { ENTRIES = 4093, ACTIVATIONS = FASTBN_ELU + 1 };

/* From -32 to 32 and, every fourth of them, of all magnitudes down to subnormals. */
static double entry(int64_t i, fastbn_dtype dtype)
{
    double z = (double)((i * 7919) % ENTRIES - ENTRIES / 2) / 64.0;
    for (int64_t k = i % 4 == 0 ? (i / 4) % (dtype == FASTBN_FLOAT32 ? 140 : 1060) : 0; k > 0; k--)
        z *= 0.5;
    return z;
}

static void fill(void *data, fastbn_dtype dtype, int64_t shift)
{
    for (int64_t i = 0; i < ENTRIES; i++)
        if (dtype == FASTBN_FLOAT32)
            ((float *)data)[i] = (float)entry((i + shift) % ENTRIES, dtype);
        else
            ((double *)data)[i] = entry((i + shift) % ENTRIES, dtype);
}

static uint64_t hash_bytes(const unsigned char *bytes, size_t count)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

void print_activation_hashes(void)
{
    const struct fbn_kernels *kernels;
    if (fbn_kernels_active(&kernels) != FASTBN_OK)
        exit(2);
    for (int dtype = 0; dtype < 2; dtype++) {
        size_t bytes = ENTRIES * type_size((fastbn_dtype)dtype);
        void *z = allocate(bytes), *dy = allocate(bytes), *out = allocate(bytes);
        fill(z, (fastbn_dtype)dtype, 0);
        fill(dy, (fastbn_dtype)dtype, 1000);
        for (int a = 0; a < ACTIVATIONS; a++) {
            kernels->typed[dtype].activate(z, out, ENTRIES, (fastbn_activation)a, 0.3);
            printf("activation %d %d %016llx\n", a, dtype, (unsigned long long)hash_bytes(out, bytes));
            kernels->typed[dtype].activate_gradient(z, dy, out, ENTRIES, (fastbn_activation)a, 0.3);
            printf("activation gradient %d %d %016llx\n", a, dtype, (unsigned long long)hash_bytes(out, bytes));
        }
        free(z);
        free(dy);
        free(out);
    }
}
