/* kept.c - memory of large results, kept for the next ones.
 *
 * A C library's malloc takes each block of more than some 32 MiB from the system and gives it back when it is freed. The
 * system clears every page again at its first touch, which costs more than computing the result. So a block that is
 * freed here waits for the next result of about its size. Meanwhile the system may take its pages whenever it is short
 * of memory (MADV_FREE). It is asked for huge pages, since each fault costs its time too.
 *
 * The block's own record lies in a page before the data. Callers hold Python's lock: nothing here is safe from several
 * threads at once.
 */
#define _DEFAULT_SOURCE /* madvise */
#include "kept.h"

#if defined(__linux__)
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_FREE
#define MADV_FREE 8
#endif

enum { RECORD = 4096, HUGE_PAGE = 2 * 1024 * 1024, SPARE = 8 /* a block may be an eighth larger than wanted */ };

struct block {
    size_t bytes; /* of the data, whole huge pages */
    struct block *next;
};

static size_t limit = (size_t)512 * 1024 * 1024;
static size_t kept = 0;
static struct block *newest = NULL;

static void *data_of(struct block *block) { return (char *)block + RECORD; }

static struct block *block_of(const void *data) { return (struct block *)((uintptr_t)data - RECORD); }

static void unmap(struct block *block) { munmap(block, block->bytes + RECORD); }

/* The data start on a huge page; what was mapped too much before and after goes back. */
static struct block *map(size_t bytes)
{
    size_t all = bytes + RECORD + HUGE_PAGE;
    char *from = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (from == MAP_FAILED)
        return NULL;
    char *data = (char *)(((uintptr_t)from + RECORD + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    size_t before = (size_t)(data - from) - RECORD, after = all - before - RECORD - bytes;
    if (before > 0)
        munmap(from, before);
    if (after > 0)
        munmap(data + bytes, after);
    madvise(data, bytes, MADV_HUGEPAGE);
    struct block *block = block_of(data);
    block->bytes = bytes;
    return block;
}

static struct block *take_out(struct block **place)
{
    struct block *block = *place;
    *place = block->next;
    kept -= block->bytes;
    return block;
}

static struct block *find(size_t bytes)
{
    for (struct block **place = &newest; *place; place = &(*place)->next)
        if ((*place)->bytes >= bytes && (*place)->bytes - bytes <= bytes / SPARE)
            return take_out(place);
    return NULL;
}

static void drop_oldest_above(size_t bytes)
{
    while (kept > bytes) {
        struct block **place = &newest;
        while ((*place)->next)
            place = &(*place)->next;
        unmap(take_out(place));
    }
}

void *fbn_kept_malloc(void *context, size_t bytes)
{
    (void)context;
    if (bytes > SIZE_MAX / 2)
        return NULL;
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    struct block *block = find(bytes);
    if (!block)
        block = map(bytes);
    if (!block) {
        drop_oldest_above(0);
        block = map(bytes);
    }
    return block ? data_of(block) : NULL;
}

void *fbn_kept_calloc(void *context, size_t number, size_t bytes)
{
    if (bytes > 0 && number > SIZE_MAX / bytes)
        return NULL;
    void *data = fbn_kept_malloc(context, number * bytes);
    return data ? memset(data, 0, number * bytes) : NULL;
}

void *fbn_kept_realloc(void *context, void *data, size_t bytes)
{
    void *moved = fbn_kept_malloc(context, bytes);
    if (moved && data) {
        size_t had = block_of(data)->bytes;
        memcpy(moved, data, had < bytes ? had : bytes);
        fbn_kept_free(context, data, had);
    }
    return moved;
}

void fbn_kept_free(void *context, void *data, size_t bytes)
{
    (void)context, (void)bytes;
    if (!data)
        return;
    struct block *block = block_of(data);
    if (block->bytes > limit) {
        unmap(block);
        return;
    }
    madvise(data, block->bytes, MADV_FREE);
    block->next = newest;
    newest = block;
    kept += block->bytes;
    drop_oldest_above(limit);
}

void fbn_kept_set_limit(size_t bytes)
{
    limit = bytes;
    drop_oldest_above(limit);
}

size_t fbn_kept_limit(void) { return limit; }

size_t fbn_kept_bytes(void) { return kept; }

#else

void *fbn_kept_malloc(void *context, size_t bytes) { return (void)context, (void)bytes, NULL; }

void *fbn_kept_calloc(void *context, size_t number, size_t bytes)
{
    return (void)context, (void)number, (void)bytes, NULL;
}

void *fbn_kept_realloc(void *context, void *data, size_t bytes)
{
    return (void)context, (void)data, (void)bytes, NULL;
}

void fbn_kept_free(void *context, void *data, size_t bytes) { (void)context, (void)data, (void)bytes; }

void fbn_kept_set_limit(size_t bytes) { (void)bytes; }

size_t fbn_kept_limit(void) { return 0; }

size_t fbn_kept_bytes(void) { return 0; }

#endif
