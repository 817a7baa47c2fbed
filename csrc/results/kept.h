/* kept.h - memory of large results, kept for the next ones. */
#ifndef FBN_KEPT_H
#define FBN_KEPT_H

#include <stddef.h>

/* As malloc and its kin, with the arguments that NumPy gives to an array's own allocator. The memory is aligned to a
 * huge page. `context` and the `bytes` that are given back are not used. */
void *fbn_kept_malloc(void *context, size_t bytes);
void *fbn_kept_calloc(void *context, size_t number, size_t bytes);
void *fbn_kept_realloc(void *context, void *data, size_t bytes);
void fbn_kept_free(void *context, void *data, size_t bytes);

/* How many bytes may be kept from now on; what is more goes at once. Always 0 where nothing can be kept. */
void fbn_kept_set_limit(size_t bytes);
size_t fbn_kept_limit(void);

/* The bytes that are kept now. */
size_t fbn_kept_bytes(void);

#endif
