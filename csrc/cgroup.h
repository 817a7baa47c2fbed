/* cgroup.h - how much processor time a container's limits leave this process. */
#ifndef FBN_CGROUP_H
#define FBN_CGROUP_H

/* The quota of processor time that the control groups of this process leave it, in whole processors, rounded up; 0 where
 * nothing limits it. root: "", or for tests a folder that holds proc/self/cgroup and sys/fs/cgroup. */
int fbn_cgroup_processors(const char *root);

#endif
