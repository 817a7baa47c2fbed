/* cache_sizes.c - sizes of the data caches, asked once.
 *
 * On Linux /sys tells them: sysconf(_SC_LEVEL3_CACHE_SIZE) multiplies the size by a guess of the sharing cores on some
 * virtual machines and was seen ten times too large.
 */
#include "machine.h"

#include <stdatomic.h>
#include <stdio.h>

#include "fastbn.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

static _Atomic int64_t known[4] = {-1, -1, -1, -1};

#if defined(__linux__)
static int read_line(int index, const char *what, char line[32])
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", index, what);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    int read = fgets(line, 32, file) != NULL;
    fclose(file);
    return read;
}

static int64_t bytes_of(const char *text)
{
    long long size = 0;
    char unit = 0;
    sscanf(text, "%lld%c", &size, &unit);
    return (int64_t)size * (unit == 'K' ? 1024 : unit == 'M' ? 1024 * 1024 : 1);
}

static int64_t ask_system(int level)
{
    char line[32];
    int found = 0;
    for (int index = 0; index < 8; index++) {
        if (!read_line(index, "level", line) || sscanf(line, "%d", &found) != 1 || found != level)
            continue;
        if (read_line(index, "type", line) && line[0] != 'I' && read_line(index, "size", line))
            return bytes_of(line);
    }
    return 0;
}
#elif defined(__APPLE__)
static int64_t ask_system(int level)
{
    static const char *const names[] = {"", "hw.l1dcachesize", "hw.l2cachesize", "hw.l3cachesize"};
    int64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname(names[level], &bytes, &size, NULL, 0) == 0 ? bytes : 0;
}
#else
static int64_t ask_system(int level)
{
    (void)level;
    return 0;
}
#endif

int64_t fastbn_cache_bytes(int level)
{
    if (level < 1 || level > 3)
        return 0;
    int64_t bytes = atomic_load(&known[level]);
    if (bytes < 0) {
        bytes = ask_system(level);
        atomic_store(&known[level], bytes);
    }
    return bytes;
}

int64_t fbn_level2_bytes(void)
{
    int64_t bytes = fastbn_cache_bytes(2);
    return bytes > 0 ? bytes : 512 * 1024;
}

int64_t fbn_last_level_bytes(void)
{
    int64_t bytes = fastbn_cache_bytes(3);
    return bytes > 0 ? bytes : fastbn_cache_bytes(2) > 0 ? fastbn_cache_bytes(2) : 8 * 1024 * 1024;
}
