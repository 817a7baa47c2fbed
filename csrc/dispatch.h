/* dispatch.h - which table of kernels is in use. */
#ifndef FBN_DISPATCH_H
#define FBN_DISPATCH_H

#include "fastbn.h"
#include "kernels.h"

/* The active table, chosen at the first call. */
fastbn_status fbn_kernels_active(const struct fbn_kernels **kernels);

#endif
