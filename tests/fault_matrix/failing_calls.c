/* Counts calls to the system below a directory, by kind, and lets the nth of one kind fail, and all of that kind after it: a
   full disk stays full. Loaded with LD_PRELOAD into a command and its children, which share the counts.
   FAULT_BELOW: the directory; FAULT_COUNTS: a file with a long for each kind; FAULT: "kind nth errno". */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of KINDS in calls.py. */
enum { CREATE, OPEN, READ, WRITE, FSYNC, TRUNCATE, RENAME, MKDIR, UNLINK, LIST, KINDS };

static char below[4096];
static long *counts;
static int kind = -1, number;
static long nth;

/* Also called by a process that was forked with other variables. */
__attribute__((constructor)) void fault_arm(void) {
    const char *directory = getenv("FAULT_BELOW"), *file = getenv("FAULT_COUNTS"), *fault = getenv("FAULT");
    if (!directory || !file) return;
    int shared = open(file, O_RDWR);
    counts = mmap(NULL, KINDS * sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
    close(shared);
    if (counts == MAP_FAILED) abort();
    if (fault && sscanf(fault, "%d %ld %d", &kind, &nth, &number) != 3) abort();
    snprintf(below, sizeof below, "%s/", directory);
}

static int fails(int call, const char *path) {
    if (strncmp(path, below, strlen(below))) return 0;
    long at = __atomic_add_fetch(&counts[call], 1, __ATOMIC_SEQ_CST);
    if (call != kind || at < nth) return 0;
    errno = number;
    return 1;
}

static int fails_of(int call, int descriptor) {
    char link[64], path[4096];
    if (!below[0]) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int fails_at(int call, int directory, const char *path) {
    char link[64], whole[8192], base[4096];
    if (!below[0]) return 0;
    if (path[0] == '/') return fails(call, path);
    if (directory == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
    }
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return fails(call, whole);
}

#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t, int, const void *, size_t);
    return fails_of(WRITE, fd) ? -1 : real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL("writev", ssize_t, int, const struct iovec *, int);
    return fails_of(WRITE, fd) ? -1 : real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL("pwrite", ssize_t, int, const void *, size_t, off_t);
    return fails_of(WRITE, fd) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL("pwrite64", ssize_t, int, const void *, size_t, off64_t);
    return fails_of(WRITE, fd) ? -1 : real(fd, data, size, at);
}
ssize_t read(int fd, void *data, size_t size) {
    REAL("read", ssize_t, int, void *, size_t);
    return fails_of(READ, fd) ? -1 : real(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
    REAL("pread", ssize_t, int, void *, size_t, off_t);
    return fails_of(READ, fd) ? -1 : real(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    REAL("pread64", ssize_t, int, void *, size_t, off64_t);
    return fails_of(READ, fd) ? -1 : real(fd, data, size, at);
}
int fsync(int fd) {
    REAL("fsync", int, int);
    return fails_of(FSYNC, fd) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
    REAL("ftruncate", int, int, off_t);
    return fails_of(TRUNCATE, fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL("ftruncate64", int, int, off64_t);
    return fails_of(TRUNCATE, fd) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    return fails_at(RENAME, AT_FDCWD, to) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL("mkdir", int, const char *, mode_t);
    return fails_at(MKDIR, AT_FDCWD, path) ? -1 : real(path, mode);
}
int unlink(const char *path) {
    REAL("unlink", int, const char *);
    return fails_at(UNLINK, AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int directory, const char *path, int flags) {
    REAL("unlinkat", int, int, const char *, int);
    return fails_at(UNLINK, directory, path) ? -1 : real(directory, path, flags);
}
/* A file system that cannot lock files, as some of clusters: always. */
int flock(int fd, int operation) {
    REAL("flock", int, int, int);
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = below[0] ? readlink(link, path, sizeof path - 1) : -1;
    path[length < 0 ? 0 : length] = 0;
    if (!below[0] || strncmp(path, below, strlen(below))) return real(fd, operation);
    errno = ENOLCK;
    return -1;
}
DIR *opendir(const char *path) {
    REAL("opendir", DIR *, const char *);
    return fails_at(LIST, AT_FDCWD, path) ? NULL : real(path);
}
DIR *fdopendir(int fd) {
    REAL("fdopendir", DIR *, int);
    return fails_of(LIST, fd) ? NULL : real(fd);
}

static int opens(int flags) { return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? CREATE : OPEN; }

#define MODE(flags) \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = opens(flags) == CREATE ? va_arg(rest, mode_t) : 0; \
    va_end(rest)
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(#name, int, const char *, int, ...); \
        MODE(flags); \
        return fails_at(opens(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
#define OPENS_AT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        REAL(#name, int, int, const char *, int, ...); \
        MODE(flags); \
        return fails_at(opens(flags), directory, path) ? -1 : real(directory, path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
