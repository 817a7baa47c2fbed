/* info.c - names and numbers of this build. */
#include <stddef.h>

#include "fastbn.h"

#ifndef FASTBN_VERSION
#define FASTBN_VERSION "unversioned"
#endif

const char *fastbn_version(void) { return FASTBN_VERSION; }

int fastbn_abi_version(void) { return FASTBN_ABI_VERSION; }

const char *fastbn_status_text(fastbn_status status)
{
    switch (status) {
    case FASTBN_OK: return "ok";
    case FASTBN_ERROR_NULL: return "a required pointer is NULL";
    case FASTBN_ERROR_SHAPE: return "a size is negative, or the sizes multiply to more than 2^62 elements";
    case FASTBN_ERROR_STRIDE: return "the features of a row must be adjacent (s == 1 needs stride_c == 1)";
    case FASTBN_ERROR_DTYPE: return "the dtype is unknown";
    case FASTBN_ERROR_MEMORY: return "scratch memory could not be allocated";
    case FASTBN_ERROR_ISA_UNKNOWN: return "the instruction set is unknown";
    case FASTBN_ERROR_ACTIVATION: return "the activation is unknown, or cannot be inverted where x was overwritten";
    case FASTBN_ERROR_FORKED: return "threads were used before the fork, and the forked process does not have them";
    case FASTBN_ERROR_ISA_UNSUPPORTED: return "the instruction set is not built in, or this processor lacks it";
    }
    return "unknown status";
}
