/* vec_plain.h - operations that are no more than another one where no instruction serves them better: without fused
 * multiply-add a difference is a subtraction, and most compilers need no telling where to compute a vector. Included by
 * the headers that have nothing better. */
#ifndef FBN_VEC_PLAIN_H
#define FBN_VEC_PLAIN_H

#define FBN_MANY_REGISTERS 0
#define f32x16_settle(x) ((void)0)
#define f64x8_settle(x) ((void)0)
#define f32x16_one() f32x16_set(1)
#define f64x8_one() f64x8_set(1)
#define f32x16_diff(x, one, y) ((void)(one), f32x16_sub(x, y))
#define f64x8_diff(x, one, y) ((void)(one), f64x8_sub(x, y))

#endif
