/* cgroup.c - how much processor time a container leaves this process, see machine.h.
 *
 * A container's limit is a quota of processor time in each period, set on its control group or on one above it. Both
 * versions of control groups write the group's path to /proc/self/cgroup. Version 2 has a line "0::/path". Version 1
 * has one that names the controller, "4:cpu,cpuacct:/path", and the link "cpu" leads to its folder. Within a container
 * the path may be the host's, and only its end may be mounted, or none of it. So every folder from the path up to the
 * root is read, and the least quota holds.
 */
#include "machine.h"

#ifdef __linux__
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { PATH = 1024, MOST = 1 << 20 };

/* Reads up to two numbers and returns how many there were. Where there is no limit, the first is negative, or "max", which
 * is no number. */
static int read_numbers(const char *path, long long *first, long long *second)
{
    FILE *file = fopen(path, "r");
    int found = file ? fscanf(file, "%lld %lld", first, second) : 0;
    if (file)
        fclose(file);
    return found;
}

static int smaller_quota(int least, long long quota, long long period)
{
    if (quota <= 0 || period <= 0 || quota / period >= MOST)
        return least;
    return fbn_limited(least, (int)((quota + period - 1) / period));
}

static int quota_in(const char *folder, int version, int least)
{
    char path[PATH + 32];
    long long quota = 0, period = 0, unused;
    if (version == 2) {
        snprintf(path, sizeof path, "%s/cpu.max", folder);
        return read_numbers(path, &quota, &period) == 2 ? smaller_quota(least, quota, period) : least;
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    int found = read_numbers(path, &quota, &unused);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    return found > 0 && read_numbers(path, &period, &unused) > 0 ? smaller_quota(least, quota, period) : least;
}

/* Reads every folder from the group's own up to the one in which control groups are mounted. */
static int quota_along(const char *mount, const char *group, int version)
{
    char folder[PATH];
    int least = 0, length = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (length < 0 || length >= PATH)
        return quota_in(mount, version, 0);
    for (;;) {
        least = quota_in(folder, version, least);
        char *end = strrchr(folder, '/');
        if (!end || (size_t)(end - folder) < strlen(mount))
            return least;
        *end = '\0';
    }
}

static int has_word(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (strncmp(at, word, length) == 0 && (at[length] == ',' || at[length] == '\0'))
            return 1;
    return 0;
}

/* The quota of the group that one line of /proc/self/cgroup names, "number:controllers:path". */
static int quota_of_line(const char *root, char *line)
{
    char mount[PATH / 2], *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group)
        return 0;
    *group++ = '\0';
    controllers++;
    group[strcspn(group, "\n")] = '\0';
    if (*controllers && !has_word(controllers, "cpu"))
        return 0;
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, *controllers ? "/cpu" : "");
    return quota_along(mount, strcmp(group, "/") == 0 ? "" : group, *controllers ? 1 : 2);
}

/* A thread that is cancelled here would leave a file open and its call counted for ever. */
int fbn_cgroup_processors(const char *root)
{
    char line[PATH / 2];
    int least = 0, before;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    snprintf(line, sizeof line, "%s/proc/self/cgroup", root);
    FILE *file = fopen(line, "r");
    while (file && fgets(line, sizeof line, file))
        least = fbn_limited(least, quota_of_line(root, line));
    if (file)
        fclose(file);
    pthread_setcancelstate(before, NULL);
    return least;
}

#else
int fbn_cgroup_processors(const char *root)
{
    (void)root;
    return 0;
}
#endif
