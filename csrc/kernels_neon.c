/* kernels_neon.c - the kernels for the instruction set neon. Compiled with its flags, which no other file gets. */
#include "vec/vec_neon.h"

#define FBN_ISA "neon"
#define FBN_TABLE fbn_kernels_neon
#include "kernels/table.inc"
