/* kernels_avx512.c - the kernels for the instruction set avx512. Compiled with its flags, which no other file gets. */
#include "vec/vec_avx512.h"

#define FBN_ISA "avx512"
#define FBN_TABLE fbn_kernels_avx512
#include "kernels/table.inc"
