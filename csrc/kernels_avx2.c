/* kernels_avx2.c - the kernels for the instruction set avx2. No other file gets these flags:
 * machine: x86_64
 * flags: -mavx2 -mfma -mf16c
 * flags of MSVC: /arch:AVX2
 */
#include "vec/vec_avx2.h"

#define FBN_ISA "avx2"
#define FBN_TABLE fbn_kernels_avx2
#include "kernels/table.inc"
