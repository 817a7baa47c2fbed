/* The C core's own test program.
 *
 *   core_test check [threads ...]   every operation in every layout on every instruction set of this machine and with
 *                                   every number of threads (1 2 3 4 7): one result, and the right one; then the other
 *                                   groups
 *   core_test sample [threads ...]  the same for a part of the layouts, and of the operations on large arrays
 *   core_test hash [isa] [threads]  one line an operation, shape, type and layout, and one an activation, to compare
 *                                   machines and compilers
 *   core_test isa                   the instruction sets: name, built, supported; then the active one
 *   core_test fork                  a child of a process that has used threads
 *   core_test large                 more than 2^31 entries
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "parallel.h"

void print_activation_hashes(void);
int check_activations(void);
int check_fork(void);
int check_large(void);

static const int64_t shapes[][3] = {
    {0, 5, 1},    {5, 0, 1},    {0, 3, 4},     {4, 3, 0},    {0, 0, 0},     {1, 1, 1},    {2, 3, 1},    {1, 64, 1},
    {17, 1, 1},   {4099, 1, 1}, {3, 2, 1},     {1000, 3, 1}, {9001, 3, 1},  {33, 5, 1},   {2500, 7, 1}, {15, 8, 1},
    {130, 16, 1}, {129, 17, 1}, {257, 30, 1},  {100, 40, 1}, {515, 64, 1},  {64, 257, 1}, {300, 129, 1}, {7, 1024, 1},
    {2, 3, 2},    {3, 5, 7},    {4, 16, 15},   {5, 3, 16},   {2, 4, 17},    {8, 7, 49},   {3, 1, 1000}, {1, 8, 196},
    {20, 2, 333}, {1, 5, 64},   {6, 33, 9},    {40, 12, 4},  {70, 4, 49},   {24, 48, 16}, {2, 3, 3136}, {1, 2, 9000},
    {31, 1, 31},
    /* more than one chunk of a feature */
    {13000, 3, 1}, {2300, 6, 5}, {3, 2, 24000}, {1, 1, 70001},
};
static const int64_t extreme_shapes[][3] = {{50, 16, 1}, {400, 32, 1}, {7, 16, 13}, {3, 17, 700}};

#define COUNT(table) ((int)(sizeof(table) / sizeof *(table)))
#define SHAPES (COUNT(shapes) + COUNT(extreme_shapes))
#define PROBLEMS (3 * SHAPES)

/* Every shape in float and in double, then in one or the other half type. */
static void make_problem(problem *p, int index)
{
    fastbn_dtype dtype = (fastbn_dtype)(index % 2);
    if (index >= 2 * SHAPES) {
        index -= 2 * SHAPES;
        dtype = index % 2 ? FASTBN_BFLOAT16 : FASTBN_FLOAT16;
    } else
        index /= 2;
    int ordinary = index < COUNT(shapes);
    const int64_t *at = ordinary ? shapes[index] : extreme_shapes[index - COUNT(shapes)];
    fill_problem(p, at[0], at[1], at[2], dtype, ordinary ? ORDINARY : EXTREME);
}

/* A sample, which takes an emulator or a sanitizer seconds rather than minutes: the dense layout and, in turn, one of
 * the others; for large arrays one operation of each kind. */
static int in_sample(const problem *p, int index, int o, int w)
{
    int last_of_kind = o + 1 == operation_count || operations[o + 1].entry != operations[o].entry;
    if (!layout_applies(&layouts[w], &operations[o], &p->shape))
        return 0;
    if (elements(&p->shape) > 20000)
        return w == 0 && (last_of_kind || operations[o].flags == (GAMMA | DX | DGAMMA | DBETA));
    return w == 0 || w == 1 + (index + o) % (layout_count - 1);
}

static const char *usable_isa(int index)
{
    for (int i = 0; fastbn_isa_name(i) != NULL; i++) {
        const char *name = fastbn_isa_name(i);
        if (fastbn_isa_built(name) && fastbn_isa_supported(name) && index-- == 0)
            return name;
    }
    return NULL;
}

static const char *const type_names[] = {"float32", "float64", "float16", "bfloat16"};

static void describe(const problem *p, const operation *op, const layout *where)
{
    const fastbn_shape *sh = &p->shape;
    printf("%s (%lld,%lld,%lld) %s %s %s", op->name, (long long)sh->n, (long long)sh->c, (long long)sh->s,
           type_names[sh->dtype], p->kind == ORDINARY ? "ordinary" : "extreme",
           where->name);
}

static int complain(const problem *p, const operation *op, const layout *where, const char *isa, int threads,
                    const char *what)
{
    printf("FAIL ");
    describe(p, op, where);
    printf(" isa %s threads %d: %s\n", isa, threads, what);
    return 1;
}

/* Every instruction set, number of threads and cache size against the first result, which is hashed into *expected. */
static int check_same(const problem *p, const operation *op, const layout *where, const int *threads, int choices,
                      uint64_t *expected, result *first)
{
    int failures = 0;
    const char *isa;
    for (int i = 0; (isa = usable_isa(i)) != NULL; i++)
        for (int t = 0; t <= choices; t++) { /* the first number of threads twice, so that it meets both cache sizes */
            int leading = i == 0 && t == 0;
            result r = new_result(p);
            fastbn_set_isa(isa);
            use_tiny_caches(t % 2 || t == choices);
            if (!run(p, op, where, threads[t % choices], &r))
                failures += complain(p, op, where, isa, threads[t % choices], "wrote outside its output");
            uint64_t hash = hash_result(p, op, &r);
            if (leading)
                *expected = hash;
            else if (hash != *expected)
                failures += complain(p, op, where, isa, threads[t % choices], "other bits");
            if (leading)
                *first = r;
            else
                free_result(&r);
        }
    if (!matches_reference(p, op, first))
        failures += complain(p, op, where, "first", threads[0], "not the reference");
    return failures;
}

/* Bits may depend on the place of the data only where a table is packed. */
static int same_bits_as_dense(const problem *p, const layout *where)
{
    return !(where->pad_n || where->pad_c || where->swapped) || !fastbn_wants_packed(&p->shape);
}

/* A gradient is the same whichever others are asked for with it: op asks for some of what the operation full gave. */
static int part_of(const operation *op, const operation *full)
{
    const int same = GAMMA | MIXED | FROZEN | FUSED;
    return op->entry == BACKWARD && full->entry == BACKWARD && (op->flags & same) == (full->flags & same);
}

static int check_problem(const problem *p, int index, int sample, const int *threads, int choices)
{
    int failures = 0, have_full = 0;
    const operation *full = NULL;
    result full_result;
    for (int o = 0; o < operation_count; o++) {
        const operation *op = &operations[o];
        uint64_t dense = 0, hash = 0;
        for (int w = 0; w < layout_count; w++) {
            if (!layout_applies(&layouts[w], op, &p->shape) || (sample && !in_sample(p, index, o, w)))
                continue;
            result first;
            failures += check_same(p, op, &layouts[w], threads, choices, &hash, &first);
            if (w == 0)
                dense = hash;
            else if (hash != dense && same_bits_as_dense(p, &layouts[w]))
                failures += complain(p, op, &layouts[w], "first", threads[0], "other bits than dense");
            if (w == 0 && have_full && part_of(op, full) && hash_result(p, op, &full_result) != hash)
                failures += complain(p, op, &layouts[w], "first", threads[0], "other bits than with all gradients");
            if (w == 0 && (op->flags & DX) && (op->flags & DGAMMA) && (op->flags & DBETA)) {
                if (have_full)
                    free_result(&full_result);
                full_result = first, full = op, have_full = 1;
            } else
                free_result(&first);
        }
    }
    if (have_full)
        free_result(&full_result);
    return failures;
}

static int check_all(int sample, int argc, char **argv)
{
    int threads[16] = {1, 2, 3, 4, 7}, choices = 5, failures = 0;
    for (int i = 0; i < argc && i < 16; i++)
        threads[i] = atoi(argv[i]), choices = i + 1;
    failures += check_concurrent(); /* first: its first calls race to choose the instruction set */
    for (int index = 0; index < PROBLEMS; index++) {
        problem p;
        make_problem(&p, index);
        fill_reference(&p);
        failures += check_problem(&p, index, sample, threads, choices);
        free_problem(&p);
    }
    fastbn_set_isa(NULL);
    use_tiny_caches(0);
    failures += check_values();
    failures += check_halves();
    failures += check_activations();
    failures += check_double_backward();
    failures += check_arguments();
    printf("%d failures\n", failures);
    return failures != 0;
}

static void print_hash(const problem *p, const operation *op, const layout *where, int threads)
{
    result r = new_result(p);
    int fine = run(p, op, where, threads, &r);
    describe(p, op, where);
    printf(" %016llx%s\n", (unsigned long long)hash_result(p, op, &r), fine ? "" : " wrote outside its output");
    free_result(&r);
}

static int print_hashes(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    fastbn_status status = fastbn_set_isa(argc > 0 && strcmp(argv[0], "best") != 0 ? argv[0] : NULL);
    if (status != FASTBN_OK) {
        fprintf(stderr, "%s: %s\n", argv[0], fastbn_status_text(status));
        return 2;
    }
    for (int index = 0; index < PROBLEMS; index++) {
        problem p;
        make_problem(&p, index);
        for (int o = 0; o < operation_count; o++)
            for (int w = 0; w < layout_count; w++)
                if (in_sample(&p, index, o, w))
                    print_hash(&p, &operations[o], &layouts[w], threads);
        free_problem(&p);
    }
    print_activation_hashes();
    return 0;
}

static int print_isas(void)
{
    const char *name, *active;
    for (int i = 0; (name = fastbn_isa_name(i)) != NULL; i++)
        printf("%s %d %d\n", name, fastbn_isa_built(name), fastbn_isa_supported(name));
    fastbn_status status = fastbn_isa_active(&active);
    printf("active %s\n", status == FASTBN_OK ? active : fastbn_status_text(status));
    return status != FASTBN_OK;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    fbn_set_bytes_per_thread(0); /* the arrays are small; threads are wanted all the same */
    if (strcmp(mode, "check") == 0)
        return check_all(0, argc - 2, argv + 2);
    if (strcmp(mode, "sample") == 0)
        return check_all(1, argc - 2, argv + 2);
    if (strcmp(mode, "hash") == 0)
        return print_hashes(argc - 2, argv + 2);
    if (strcmp(mode, "isa") == 0)
        return print_isas();
    if (strcmp(mode, "fork") == 0)
        return check_fork();
    if (strcmp(mode, "large") == 0)
        return check_large();
    fprintf(stderr, "usage: core_test check|sample [threads ...] | hash [isa|best] [threads] | isa | fork | large\n");
    return 2;
}
