/* The kernels of the activations, which hold no state and know no layout: all members of the list, one after the other.
 * A member needs nothing of its own here. Its float64 gradient is compared with differences of its float64 values, and
 * its float32 kernels with its float64 ones; tests/test_activations.py compares these with the formulas. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "harness.h"

enum { ENTRIES = 4093 };
static const double slope = 0.25; /* a float too */

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

/* ---- hashes ---- */

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
        for (int a = 0; a < FBN_ACTIVATIONS; a++) {
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

/* ---- values against gradients, float32 against float64 ---- */

static double value(const struct fbn_kernels *kernels, fastbn_activation activation, double z)
{
    double y;
    kernels->typed[FASTBN_FLOAT64].activate(&z, &y, 1, activation, slope);
    return y;
}

static double gradient(const struct fbn_kernels *kernels, fastbn_activation activation, double z)
{
    double dz, one = 1.0;
    kernels->typed[FASTBN_FLOAT64].activate_gradient(&z, &one, &dz, 1, activation, slope);
    return dz;
}

/* Derivatives jump at whole numbers only, which these z are not. */
static int differs_from_gradient(const struct fbn_kernels *kernels, fastbn_activation activation, double z)
{
    const double h = 1.0 / 8192;
    double change = (value(kernels, activation, z + h) - value(kernels, activation, z - h)) / (2 * h);
    return !(fabs(change - gradient(kernels, activation, z)) < 1e-6);
}

static int floats_differ(const struct fbn_kernels *kernels, fastbn_activation activation, double z)
{
    float narrow = (float)z, one = 1.0f, y, dz;
    kernels->typed[FASTBN_FLOAT32].activate(&narrow, &y, 1, activation, slope);
    kernels->typed[FASTBN_FLOAT32].activate_gradient(&narrow, &one, &dz, 1, activation, slope);
    double wide = value(kernels, activation, narrow);
    return !(fabs((double)y - wide) <= 3e-7 * fabs(wide)) ||
           !(fabs((double)dz - gradient(kernels, activation, narrow)) <= 1e-6);
}

int check_activations(void)
{
    const struct fbn_kernels *kernels;
    int failures = 0;
    if (fbn_kernels_active(&kernels) != FASTBN_OK)
        exit(2);
    for (int a = 0; a < FBN_ACTIVATIONS; a++)
        for (int i = -2500; i < 2500; i++) {
            double z = i / 250.0 + 1.0 / 517;
            int wrong = differs_from_gradient(kernels, (fastbn_activation)a, z) ||
                        floats_differ(kernels, (fastbn_activation)a, z);
            if (wrong && failures++ < 10)
                printf("%s is wrong at %.17g\n", fbn_activation_name((fastbn_activation)a), z);
        }
    return failures;
}
