/* Cache sizes that the test chooses.
 *
 * The sizes decide on blocking and on stores past the caches, never on results. The build renames the two functions of
 * csrc/cache_sizes.c, and these take their place: with tiny caches, small arrays take the paths of those that outgrow memory.
 */
#include "machine.h"

#include "harness.h"

int64_t real_level2_bytes(void);
int64_t real_last_level_bytes(void);

static int tiny = 0;

void use_tiny_caches(int yes) { tiny = yes; }

int64_t fbn_level2_bytes(void) { return tiny ? 4 * 1024 : real_level2_bytes(); }

int64_t fbn_last_level_bytes(void) { return tiny ? 16 * 1024 : real_last_level_bytes(); }
