// A library that is loaded before duet (LD_PRELOAD) and makes one call of it fail. Environment:
//
//   DUET_FAULT=KIND N          the N-th call of that kind fails, once; kinds are below. And:
//                              full N   from the N-th on all writes fail: half of it is written,
//                                       then the disk is full
//                              kill N   half of the N-th write is written, then SIGKILL
//                              stall N  half of the N-th write is written, and it never returns
//                              power 0  nothing fails; instead of syncing, all that a power cut at
//                                       any moment could leave goes to DUET_FAULT_TREES (disk.h)
//                              count 0  nothing fails
//   DUET_FAULT_ROOT=FOLDER     calls about files count if they are in it
//   DUET_FAULT_COUNTS=FILE     takes "KIND CALLS" a line when main returns
//
// Calls count while main runs. Allocations count if the program or the C++ library asks for them,
// by the return address: those are duet's own, others are the C library's and MPI's. stdio writes
// within the C library, where nobody can step between: so fwrite is done here, unbuffered.
//
// glibc on Linux only. Read next: faults_test.cpp, which drives it.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <new>
#include <sstream>

#include "test/faults/disk.h"

namespace {

enum Call { kOpen, kRead, kWrite, kSync, kClose, kRename, kMkdir, kRemove, kThread, kNew };
constexpr const char* kKinds[] = {
    "open", "read", "write", "fsync", "close", "rename", "mkdir", "remove", "thread", "new"};
constexpr int kCalls = std::size(kKinds);

struct Plan {
  std::string root, kind;
  long n = 0;
  std::unique_ptr<faults::Disk> disk;
  std::mutex mutex;  // of disk
  std::atomic<long> calls[kCalls] = {};
};
Plan* plan = nullptr;            // while main runs
thread_local int own_calls = 0;  // > 0: this library's own calls go through

struct Own {
  Own() { ++own_calls; }
  ~Own() { --own_calls; }
};

bool watched() { return plan && own_calls == 0; }

// Counts a call; whether it is to fail.
bool strikes(Call call) {
  const long n = ++plan->calls[call];
  if (call == kWrite && plan->kind == "full") return n >= plan->n;
  if (call == kWrite && (plan->kind == "kill" || plan->kind == "stall")) return n == plan->n;
  return plan->kind == kKinds[call] && n == plan->n;
}

bool in_root(const std::string& path) {
  return path.starts_with(plan->root) &&
      (path.size() == plan->root.size() || path[plan->root.size()] == '/');
}
std::string path_of(int fd) {
  char path[4096];
  const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
  return std::string(path, n > 0 ? size_t(n) : 0);
}
bool concerns(int fd) {
  const int error = errno;
  Own own;
  const bool yes = in_root(path_of(fd));
  errno = error;
  return yes;
}
std::string whole_path(int folder, const char* path) {
  if (path[0] == '/') return path;
  char here[4096] = "";
  return (folder == AT_FDCWD ? std::string(getcwd(here, sizeof here)) : path_of(folder)) + "/" +
      path;
}
bool concerns(int folder, const char* path) {
  Own own;
  return in_root(whole_path(folder, path));
}

void before_change(bool at_end = false) {
  if (!plan->disk) return;
  Own own;
  std::lock_guard lock(plan->mutex);
  plan->disk->cut(at_end);
}

int failed(int error) {
  errno = error;
  return -1;
}

// The function of this name in the libraries after this one.
template <class F> F next(F, const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}
#define NEXT(name) static const auto real = next(&name, #name)

// Whether to fail the opening of a file.
bool open_strikes(int folder, const char* path, bool changes) {
  if (!watched() || !concerns(folder, path)) return false;
  if (changes) before_change();
  return strikes(kOpen);
}

// Bytes written, or -1.
ssize_t write_some(int fd, const void* data, size_t bytes) {
  NEXT(write);
  if (!watched() || !concerns(fd) || !strikes(kWrite)) return real(fd, data, bytes);
  if (plan->kind == "write") return failed(EIO);
  if (plan->calls[kWrite] > plan->n) return failed(ENOSPC);
  const ssize_t half = bytes < 2 ? 0 : real(fd, data, bytes / 2);
  if (plan->kind == "kill") kill(getpid(), SIGKILL);
  while (plan->kind == "stall") pause();
  return half ? half : failed(ENOSPC);
}

// Whether the code at `address` is the program's or the C++ library's.
bool is_program(const void* address) {
  struct Look {
    uintptr_t at;
    bool found = false;
  } look{reinterpret_cast<uintptr_t>(address)};
  const auto visit = [](dl_phdr_info* object, size_t, void* data) {
    Look& look = *static_cast<Look*>(data);
    const bool ours = !object->dlpi_name[0] || strstr(object->dlpi_name, "libstdc++");
    for (int i = 0; ours && i < object->dlpi_phnum; ++i) {
      const uintptr_t begin = object->dlpi_addr + object->dlpi_phdr[i].p_vaddr;
      look.found |= look.at >= begin && look.at < begin + object->dlpi_phdr[i].p_memsz;
    }
    return 0;
  };
  dl_iterate_phdr(visit, &look);
  return look.found;
}

void* allocate(size_t bytes, size_t alignment, const void* caller) {
  if (watched()) {
    Own own;
    if (is_program(caller) && strikes(kNew)) throw std::bad_alloc();
  }
  void* p = alignment ? aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                      : malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return p;
}

int (*program)(int, char**, char**);

int main_watched(int argc, char** argv, char** environment) {
  const auto variable = [](const char* name) {
    const char* value = getenv(name);
    return std::string(value ? value : "");
  };
  Plan all;
  all.root = variable("DUET_FAULT_ROOT");
  std::istringstream(variable("DUET_FAULT")) >> all.kind >> all.n;
  if (all.kind == "power")
    all.disk = std::make_unique<faults::Disk>(all.root, variable("DUET_FAULT_TREES"));
  plan = &all;
  const int status = program(argc, argv, environment);
  before_change(true);
  plan = nullptr;
  std::ofstream counts(variable("DUET_FAULT_COUNTS"));
  for (int i = 0; i < kCalls; ++i) counts << kKinds[i] << ' ' << all.calls[i] << '\n';
  counts.close();
  fflush(nullptr);
  _exit(status);  // no thread may find plan gone
}

mode_t mode_of(int flags, va_list list) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

// Removes, or with a Disk moves away.
template <class Real> int remove_in(int folder, const char* path, Real real) {
  if (!watched() || !concerns(folder, path)) return real();
  before_change();
  if (strikes(kRemove)) return failed(EIO);
  if (!plan->disk) return real();
  Own own;
  return renameat(folder, path, AT_FDCWD, plan->disk->grave().c_str());
}

}  // namespace

// --- the calls -----------------------------------------------------------------------------------

extern "C" {

int __libc_start_main(int (*main)(int, char**, char**), int argc, char** argv, void (*init)(),
    void (*fini)(), void (*loader)(), void* stack) {
  NEXT(__libc_start_main);
  program = main;
  return real(main_watched, argc, argv, init, fini, loader, stack);
}

int openat(int folder, const char* path, int flags, ...) {
  NEXT(openat);
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  if (open_strikes(folder, path, flags & (O_CREAT | O_TRUNC))) return failed(EMFILE);
  return real(folder, path, flags, mode);
}
int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return openat(AT_FDCWD, path, flags, mode);
}
int open64(const char*, int, ...) __attribute__((alias("open")));
int openat64(int, const char*, int, ...) __attribute__((alias("openat")));

FILE* fopen(const char* path, const char* mode) {
  NEXT(fopen);
  if (!open_strikes(AT_FDCWD, path, mode[0] != 'r')) return real(path, mode);
  errno = EMFILE;
  return nullptr;
}
FILE* fopen64(const char*, const char*) __attribute__((alias("fopen")));

DIR* opendir(const char* path) {
  NEXT(opendir);
  if (!open_strikes(AT_FDCWD, path, false)) return real(path);
  errno = EMFILE;
  return nullptr;
}

ssize_t read(int fd, void* to, size_t bytes) {
  NEXT(read);
  return watched() && concerns(fd) && strikes(kRead) ? failed(EIO) : real(fd, to, bytes);
}

ssize_t pread(int fd, void* to, size_t bytes, off_t at) {
  NEXT(pread);
  return watched() && concerns(fd) && strikes(kRead) ? failed(EIO) : real(fd, to, bytes, at);
}
ssize_t pread64(int, void*, size_t, off_t) __attribute__((alias("pread")));

ssize_t write(int fd, const void* data, size_t bytes) { return write_some(fd, data, bytes); }
ssize_t writev(int fd, const iovec* parts, int n) {
  ssize_t done = 0;
  for (int i = 0; i < n; ++i) {
    const ssize_t part = write_some(fd, parts[i].iov_base, parts[i].iov_len);
    if (part < 0) return done ? done : part;
    done += part;
    if (size_t(part) < parts[i].iov_len) break;
  }
  return done;
}
size_t fwrite(const void* data, size_t size, size_t n, FILE* file) {
  NEXT(fwrite);
  if (!watched() || !concerns(fileno(file))) return real(data, size, n, file);
  size_t done = 0;
  while (done < size * n) {
    const ssize_t part =
        write_some(fileno(file), static_cast<const char*>(data) + done, size * n - done);
    if (part < 0) break;
    done += size_t(part);
  }
  return size ? done / size : 0;
}
int fclose(FILE* file) {
  NEXT(fclose);
  const bool strike = watched() && concerns(fileno(file)) && strikes(kClose);
  const int status = real(file);
  return strike ? failed(EIO) : status;
}

// Nothing is synced in truth, which would take most of the time and change nothing that is seen.
int fsync(int fd) {
  NEXT(fsync);
  if (!watched() || !concerns(fd)) return real(fd);
  before_change();
  if (strikes(kSync)) return failed(EIO);
  if (plan->disk) {
    Own own;
    std::lock_guard lock(plan->mutex);
    plan->disk->synced(fd);
  }
  return 0;
}
int fdatasync(int fd) { return fsync(fd); }

int renameat(int from_folder, const char* from, int to_folder, const char* to) {
  NEXT(renameat);
  if (!watched() || !concerns(to_folder, to)) return real(from_folder, from, to_folder, to);
  before_change();
  if (strikes(kRename)) return failed(EIO);
  Own own;
  struct stat info;
  if (plan->disk && fstatat(to_folder, to, &info, AT_SYMLINK_NOFOLLOW) == 0)
    real(to_folder, to, AT_FDCWD, plan->disk->grave().c_str());
  return real(from_folder, from, to_folder, to);
}
int rename(const char* from, const char* to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int mkdir(const char* path, mode_t mode) {
  NEXT(mkdir);
  if (!watched() || !concerns(AT_FDCWD, path)) return real(path, mode);
  before_change();
  return strikes(kMkdir) ? failed(ENOSPC) : real(path, mode);
}

int unlinkat(int folder, const char* path, int flags) {
  NEXT(unlinkat);
  return remove_in(folder, path, [&] { return real(folder, path, flags); });
}
int unlink(const char* path) {
  NEXT(unlink);
  return remove_in(AT_FDCWD, path, [&] { return real(path); });
}
int rmdir(const char* path) {
  NEXT(rmdir);
  return remove_in(AT_FDCWD, path, [&] { return real(path); });
}
int remove(const char* path) {
  NEXT(remove);
  return remove_in(AT_FDCWD, path, [&] {
    Own own;
    return real(path);
  });
}

int pthread_create(
    pthread_t* thread, const pthread_attr_t* attributes, void* (*body)(void*), void* argument) {
  NEXT(pthread_create);
  return watched() && strikes(kThread) ? EAGAIN : real(thread, attributes, body, argument);
}

}  // extern "C"

void* operator new(size_t bytes) { return allocate(bytes, 0, __builtin_return_address(0)); }
void* operator new[](size_t bytes) { return allocate(bytes, 0, __builtin_return_address(0)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, size_t(alignment), __builtin_return_address(0));
}
void operator delete(void* p) noexcept { free(p); }
void operator delete(void* p, size_t) noexcept { free(p); }
void operator delete(void* p, std::align_val_t) noexcept { free(p); }
void operator delete[](void* p) noexcept { free(p); }
void operator delete[](void* p, size_t) noexcept { free(p); }
