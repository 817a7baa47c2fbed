/* kernels_generic.c - the kernels for any processor, with no flags of their own. */
#include "vec/vec_generic.h"

#define FBN_ISA "generic"
#define FBN_SMALL_CODE 1
#define FBN_TABLE fbn_kernels_generic
#include "kernels/table.inc"
