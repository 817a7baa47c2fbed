/* Calls from several threads at once, from inside a parallel region of the caller, and from a forked child. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#ifdef _OPENMP
enum { THREADS_ARE_USED = 1 };
#else
enum { THREADS_ARE_USED = 0 };
#endif
enum { WORKERS = 4, ROUNDS = 3, SHAPES = 3 };

static problem shared_problems[SHAPES];
static uint64_t expected[SHAPES][32];

static void make_shared(void)
{
    fill_problem(&shared_problems[0], 600, 40, 1, FASTBN_FLOAT32, ORDINARY);
    fill_problem(&shared_problems[1], 900, 3, 1, FASTBN_FLOAT64, ORDINARY);
    fill_problem(&shared_problems[2], 4, 8, 700, FASTBN_FLOAT32, ORDINARY);
}

static void free_shared(void)
{
    for (int i = 0; i < SHAPES; i++)
        free_problem(&shared_problems[i]);
}

static uint64_t one_hash(int shape, int o, int threads)
{
    const problem *p = &shared_problems[shape];
    result r = new_result(p);
    run(p, &operations[o], &layouts[0], threads, &r);
    uint64_t hash = hash_result(p, &operations[o], &r);
    free_result(&r);
    return hash;
}

static void serial_hashes(void)
{
    for (int i = 0; i < SHAPES; i++)
        for (int o = 0; o < operation_count; o++)
            expected[i][o] = one_hash(i, o, 1);
}

static int wrong_hashes(int threads)
{
    int wrong = 0;
    for (int i = 0; i < SHAPES; i++)
        for (int o = 0; o < operation_count; o++)
            wrong += one_hash(i, o, threads) != expected[i][o];
    return wrong;
}

typedef struct worker {
    pthread_t thread;
    int number, wrong;
    uint64_t first;
} worker;

/* The very first calls of the process: the choice of the instruction set is made by whoever comes first. */
static void *first_call(void *argument)
{
    worker *w = argument;
    w->first = one_hash(0, 5, 2);
    return NULL;
}

static void *many_calls(void *argument)
{
    worker *w = argument;
    for (int round = 0; round < ROUNDS; round++)
        w->wrong += wrong_hashes(w->number + 1);
    return NULL;
}

/* Results do not depend on the instruction set, so it may be changed under running calls. */
static void *changes_isa(void *argument)
{
    worker *w = argument;
    for (int round = 0; round < 200; round++)
        for (int i = 0; fastbn_isa_name(i) != NULL; i++) {
            fastbn_set_isa(fastbn_isa_name(i));
            w->wrong += fastbn_get_num_threads() < 1;
        }
    fastbn_set_isa(NULL);
    return NULL;
}

static int start_all(worker *workers, void *(*body)(void *), int last_changes_isa)
{
    int wrong = 0;
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = (worker){.number = i};
        void *(*role)(void *) = last_changes_isa && i == WORKERS - 1 ? changes_isa : body;
        if (pthread_create(&workers[i].thread, NULL, role, &workers[i]) != 0)
            return failure("no thread could be started");
    }
    for (int i = 0; i < WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        wrong += workers[i].wrong;
    }
    return wrong;
}

static int inside_a_region(void)
{
    int wrong = 0;
#pragma omp parallel num_threads(WORKERS) reduction(+ : wrong)
    wrong += wrong_hashes(2);
    return wrong;
}

int check_concurrent(void)
{
    int failures = 0;
    worker workers[WORKERS];
    make_shared();
    failures += start_all(workers, first_call, 0);
    serial_hashes();
    for (int i = 0; i < WORKERS; i++)
        if (workers[i].first != expected[0][5])
            failures += failure("first call of thread %d: other bits", i);
    if (start_all(workers, many_calls, 1))
        failures += failure("calls from several threads at once: other bits");
    if (inside_a_region())
        failures += failure("calls inside a parallel region: other bits");
    free_shared();
    return failures;
}

/* In a child a hang is the failure to expect: a time limit ends it with a signal. */
static int child_fails(int rearm, fastbn_status expected_status)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(30);
        int as_expected = !rearm || fastbn_rearm_threads() == expected_status;
        int serial = (rearm && expected_status == FASTBN_OK) || fastbn_get_num_threads() == 1;
        _exit(wrong_hashes(2) || !serial || !as_expected);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int check_fork(void)
{
    int failures = 0;
    make_shared();
    serial_hashes();
    if (child_fails(0, FASTBN_OK))
        failures += failure("child of a process that has used no threads");
    if (child_fails(1, FASTBN_OK)) /* the parent's pool does not exist yet: threads in the child are safe */
        failures += failure("child that switched threads on again");
    if (wrong_hashes(4) || child_fails(0, FASTBN_OK))
        failures += failure("child of a process that has used threads");
    if (child_fails(1, THREADS_ARE_USED ? FASTBN_ERROR_FORKED : FASTBN_OK))
        failures += failure("child that switched threads on again, of a process that has used threads");
    if (wrong_hashes(4))
        failures += failure("the parent after the fork");
    free_shared();
    return failures != 0;
}
