// Lets one call that changes a file below a folder fail: preloaded into a process (LD_PRELOAD), told by
// persia_fail() which one. Counts these calls. Reads are left alone. Used by tests/fuzz/faults.py.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace {

char g_folder[PATH_MAX];  // no file below is touched while it is empty
long g_at = 0;
int g_error = 0;

// In memory that a parent shares: it reads this also after a child that has crashed.
struct Seen {
    std::atomic<long> calls;
    char failed[PATH_MAX + 64];  // the call and its path
};

Seen* g_seen = nullptr;

bool below(const char* path) {
    const size_t length = strlen(g_folder);
    return length > 0 && strncmp(path, g_folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

// Whether the call is the one that fails; it sets errno then.
bool counted(const char* call, const char* path) {
    if (++g_seen->calls != g_at) return false;
    snprintf(g_seen->failed, sizeof g_seen->failed, "%s %s", call, path + strlen(g_folder));
    errno = g_error;
    return true;
}

bool of_link(const char* call, const char* link) {
    if (g_folder[0] == 0) return false;
    const int before = errno;
    char path[PATH_MAX];
    const ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return false;
    path[length] = 0;
    return below(path) && counted(call, path);
}

bool of_file(const char* call, int file) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    return of_link(call, link);
}

bool of_path(const char* call, int folder, const char* name) {
    if (g_folder[0] == 0 || name == nullptr) return false;
    const int before = errno;
    char path[2 * PATH_MAX] = "";
    if (name[0] != '/') {
        char link[64] = "/proc/self/cwd";
        if (folder != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        const ssize_t length = readlink(link, path, PATH_MAX);
        if (length < 0) return false;
        path[length] = '/';
    }
    strncat(path, name, PATH_MAX);
    errno = before;
    return below(path) && counted(call, path);
}

template <class Function>
Function* real(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

constexpr int kWrites = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;

}  // namespace

#define REAL(name) static auto* const next = real<decltype(name)>(#name)

extern "C" {

// Makes the memory that this process will share with those that it starts.
void persia_begin() {
    void* const memory = mmap(nullptr, sizeof(Seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_seen = static_cast<Seen*>(memory);
}

void persia_fail(const char* folder, long at, int error) {
    if (at >= 0) {
        g_seen->calls = 0;
        g_seen->failed[0] = 0;
    }
    g_at = at;
    g_error = error;
    snprintf(g_folder, sizeof g_folder, "%s", folder);
}

long persia_calls() { return g_seen->calls; }

const char* persia_failed() { return g_seen->failed; }

#define OPEN(name)                                                            \
    int name(const char* path, int flags, ...) {                              \
        REAL(name);                                                           \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        const mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if ((flags & kWrites) && of_path("open", AT_FDCWD, path)) return -1;  \
        return next(path, flags, mode);                                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                          \
    int name(int folder, const char* path, int flags, ...) {                  \
        REAL(name);                                                           \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        const mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                         \
        if ((flags & kWrites) && of_path("open", folder, path)) return -1;    \
        return next(folder, path, flags, mode);                               \
    }
OPENAT(openat)
OPENAT(openat64)

#define OF_FILE(name, result, arguments, values)   \
    result name arguments {                        \
        REAL(name);                                \
        if (of_file(#name, file)) return -1;       \
        return next values;                        \
    }
OF_FILE(write, ssize_t, (int file, const void* data, size_t size), (file, data, size))
OF_FILE(pwrite, ssize_t, (int file, const void* data, size_t size, off_t at), (file, data, size, at))
OF_FILE(pwrite64, ssize_t, (int file, const void* data, size_t size, off64_t at), (file, data, size, at))
OF_FILE(writev, ssize_t, (int file, const struct iovec* parts, int count), (file, parts, count))
OF_FILE(fsync, int, (int file), (file))
OF_FILE(fdatasync, int, (int file), (file))
OF_FILE(ftruncate, int, (int file, off_t size), (file, size))
OF_FILE(ftruncate64, int, (int file, off64_t size), (file, size))
OF_FILE(fallocate, int, (int file, int mode, off_t at, off_t size), (file, mode, at, size))
OF_FILE(fallocate64, int, (int file, int mode, off64_t at, off64_t size), (file, mode, at, size))

#define OF_PATH(name, folder, path, arguments, values) \
    int name arguments {                               \
        REAL(name);                                    \
        if (of_path(#name, folder, path)) return -1;   \
        return next values;                            \
    }
OF_PATH(truncate, AT_FDCWD, path, (const char* path, off_t size), (path, size))
OF_PATH(truncate64, AT_FDCWD, path, (const char* path, off64_t size), (path, size))
OF_PATH(rename, AT_FDCWD, to, (const char* from, const char* to), (from, to))
OF_PATH(renameat, folder, to, (int of, const char* from, int folder, const char* to), (of, from, folder, to))
OF_PATH(link, AT_FDCWD, to, (const char* from, const char* to), (from, to))
OF_PATH(linkat, folder, to, (int of, const char* from, int folder, const char* to, int flags),
        (of, from, folder, to, flags))
OF_PATH(symlink, AT_FDCWD, to, (const char* from, const char* to), (from, to))
OF_PATH(symlinkat, folder, to, (const char* from, int folder, const char* to), (from, folder, to))
OF_PATH(unlink, AT_FDCWD, path, (const char* path), (path))
OF_PATH(unlinkat, folder, path, (int folder, const char* path, int flags), (folder, path, flags))
OF_PATH(mkdir, AT_FDCWD, path, (const char* path, mode_t mode), (path, mode))
OF_PATH(mkdirat, folder, path, (int folder, const char* path, mode_t mode), (folder, path, mode))
OF_PATH(rmdir, AT_FDCWD, path, (const char* path), (path))
OF_PATH(mkfifo, AT_FDCWD, path, (const char* path, mode_t mode), (path, mode))

}  // extern "C"
