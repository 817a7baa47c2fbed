/* kernels_avx512.c - the kernels for the instruction set avx512. No other file gets these flags:
 * machine: x86_64
 * flags: -mavx512f -mavx512bw -mavx512dq -mavx512vl
 * flags of MSVC: /arch:AVX512
 */
#include "vec/vec_avx512.h"

#define FBN_ISA "avx512"
#define FBN_TABLE fbn_kernels_avx512
#include "kernels/table.inc"
