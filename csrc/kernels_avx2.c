/* kernels_avx2.c - the kernels for the instruction set avx2. Compiled with its flags, which no other file gets. */
#include "vec/vec_avx2.h"

#define FBN_ISA "avx2"
#define FBN_TABLE fbn_kernels_avx2
#include "kernels/table.inc"
