/* kernels_neon.c - the kernels for the instruction set neon. No other file gets these flags:
 * machine: aarch64
 * flags:
 * flags of MSVC:
 */
#include "vec/vec_neon.h"

#define FBN_ISA "neon"
#define FBN_TABLE fbn_kernels_neon
#include "kernels/table.inc"
