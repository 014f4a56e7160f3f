/* Loaded before libc (LD_PRELOAD): kills the process at its n-th call that changes files.
 *
 * arm(n, torn): die at the n-th call from now on; a write that is torn gets half of its bytes to the file first.
 * calls(): how many there have been since. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long left = -1, count = 0;
static int half = 0;

void arm(long n, int torn) { left = n; half = torn; count = 0; }
long calls(void) { return count; }

static int due(void) {
    count++;
    return left > 0 && --left == 0;
}

static void die(void) { kill(getpid(), SIGKILL); pause(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_file(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

ssize_t write(int fd, const void *data, size_t size) {
    if (is_file(fd) && due()) { if (half) REAL(write)(fd, data, size / 2); die(); }
    return REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    if (is_file(fd) && due()) { if (half) REAL(pwrite)(fd, data, size / 2 / 4096 * 4096, at); die(); }
    return REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (is_file(fd) && due()) { if (half) REAL(pwrite64)(fd, data, size / 2 / 4096 * 4096, at); die(); }
    return REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (is_file(fd) && due()) { if (half) REAL(write)(fd, parts[0].iov_base, parts[0].iov_len / 2); die(); }
    return REAL(writev)(fd, parts, n);
}
int fsync(int fd) { if (due()) die(); return REAL(fsync)(fd); }
int fdatasync(int fd) { if (due()) die(); return REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { if (due()) die(); return REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { if (due()) die(); return REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { if (due()) die(); return REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { if (due()) die(); return REAL(renameat)(a, from, b, to); }
int link(const char *from, const char *to) { if (due()) die(); return REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { if (due()) die(); return REAL(linkat)(a, from, b, to, flags); }
int unlink(const char *path) { if (due()) die(); return REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) { if (due()) die(); return REAL(unlinkat)(at, path, flags); }
int rmdir(const char *path) { if (due()) die(); return REAL(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { if (due()) die(); return REAL(mkdir)(path, mode); }
