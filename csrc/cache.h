/* cache.h - sizes of the data caches. */
#ifndef FBN_CACHE_H
#define FBN_CACHE_H

#include <stdint.h>

/* Of one core's level 2, and of the shared last level; a usual size where the system does not tell. They decide where
 * things are computed and how they are stored, never what comes out. */
int64_t fbn_level2_bytes(void);
int64_t fbn_last_level_bytes(void);

#endif
