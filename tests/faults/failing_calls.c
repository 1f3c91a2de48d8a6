/* Makes one call to the system fail: the nth of a kind that writes below a directory.
   Loaded with LD_PRELOAD; `fault_arm` is called by the process that is to meet it, and `fault_calls` counts. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char kind[32], below[4096];
static long nth = -1;
static int number;
static long calls;

void fault_arm(const char *call, const char *directory, long which, int error) {
    snprintf(kind, sizeof kind, "%s", call);
    snprintf(below, sizeof below, "%s", directory);
    nth = which;
    number = error;
    calls = 0;
}

long fault_calls(void) { return calls; }

static int is_below(const char *path) { return strncmp(path, below, strlen(below)) == 0; }

/* Once it has failed, all later calls of that kind fail, too: a full disk stays full. */
static int fails(const char *call, const char *path) {
    if (!below[0] || strcmp(call, kind) || !is_below(path)) return 0;
    long at = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (nth < 0 || at < nth) return 0;
    errno = number;
    return 1;
}

static int fails_of(const char *call, int descriptor) {
    char link[64], path[4096];
    if (!below[0] || strcmp(call, kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(call, path);
}

static int fails_at(const char *call, const char *path) {
    char whole[8192], here[4096];
    if (!below[0] || strcmp(call, kind)) return 0;
    if (path[0] == '/' || !getcwd(here, sizeof here)) return fails(call, path);
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return fails(call, whole);
}

#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t, int, const void *, size_t);
    return fails_of("write", fd) ? -1 : real(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL("writev", ssize_t, int, const struct iovec *, int);
    return fails_of("write", fd) ? -1 : real(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL("pwrite", ssize_t, int, const void *, size_t, off_t);
    return fails_of("write", fd) ? -1 : real(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL("pwrite64", ssize_t, int, const void *, size_t, off64_t);
    return fails_of("write", fd) ? -1 : real(fd, data, size, at);
}
ssize_t read(int fd, void *data, size_t size) {
    REAL("read", ssize_t, int, void *, size_t);
    return fails_of("read", fd) ? -1 : real(fd, data, size);
}
ssize_t pread(int fd, void *data, size_t size, off_t at) {
    REAL("pread", ssize_t, int, void *, size_t, off_t);
    return fails_of("read", fd) ? -1 : real(fd, data, size, at);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    REAL("pread64", ssize_t, int, void *, size_t, off64_t);
    return fails_of("read", fd) ? -1 : real(fd, data, size, at);
}
int fsync(int fd) {
    REAL("fsync", int, int);
    return fails_of("fsync", fd) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
    REAL("ftruncate", int, int, off_t);
    return fails_of("truncate", fd) ? -1 : real(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    REAL("ftruncate64", int, int, off64_t);
    return fails_of("truncate", fd) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
    REAL("rename", int, const char *, const char *);
    return fails_at("rename", to) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
    REAL("mkdir", int, const char *, mode_t);
    return fails_at("mkdir", path) ? -1 : real(path, mode);
}
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(#name, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int creates = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE; \
        return creates && fails_at("create", path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
