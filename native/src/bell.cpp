#include "persia/bell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

namespace persia {

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kBlindNanoseconds = 1'000'000;  // a sleep that a bell ought to end, but can't
constexpr std::size_t kMaxBells = 128;                  // of one futex_waitv

timespec as_time(std::uint64_t nanoseconds) {
    return {static_cast<time_t>(nanoseconds / kSecond), static_cast<long>(nanoseconds % kSecond)};
}

#ifdef SYS_futex_waitv
// Linux 5.16. False where the kernel or a sandbox does not know it.
bool wait_for_any(const std::vector<Bell*>& bells, const std::vector<std::uint32_t>& counts,
                  std::uint64_t nanoseconds) {
    futex_waitv waiters[kMaxBells] = {};
    for (std::size_t i = 0; i < bells.size(); ++i) {
        waiters[i].val = counts[i];
        waiters[i].uaddr = reinterpret_cast<std::uintptr_t>(&bells[i]->count);
        waiters[i].flags = FUTEX_32;
    }
    const timespec end = as_time(monotonic_nanoseconds() + nanoseconds);
    const long result = syscall(SYS_futex_waitv, waiters, bells.size(), 0, &end, CLOCK_MONOTONIC);
    return result >= 0 || errno == EAGAIN || errno == ETIMEDOUT || errno == EINTR;
}
#else
bool wait_for_any(const std::vector<Bell*>&, const std::vector<std::uint32_t>&, std::uint64_t) {
    return false;
}
#endif

}  // namespace

std::uint64_t monotonic_nanoseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * kSecond + static_cast<std::uint64_t>(now.tv_nsec);
}

void ring(Bell* bell) {
    // Orders the news before the look at `asleep`, as the sleeper orders `asleep` before its look for news:
    // at least one of the two sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (__atomic_load_n(&bell->asleep, __ATOMIC_RELAXED) == 0) return;
    if (__atomic_exchange_n(&bell->asleep, 0, __ATOMIC_SEQ_CST) == 0) return;  // somebody else rings
    __atomic_fetch_add(&bell->count, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &bell->count, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

Sleep::Sleep(const std::vector<Bell*>& bells) : bells_(bells) {
    for (Bell* bell : bells_) {
        counts_.push_back(__atomic_load_n(&bell->count, __ATOMIC_RELAXED));
        __atomic_store_n(&bell->asleep, 1, __ATOMIC_SEQ_CST);
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
}

Sleep::~Sleep() {
    for (Bell* bell : bells_) __atomic_store_n(&bell->asleep, 0, __ATOMIC_RELAXED);
}

void Sleep::until_rung(std::uint64_t nanoseconds) {
    if (bells_.size() == 1) {
        const timespec time = as_time(nanoseconds);
        syscall(SYS_futex, &bells_[0]->count, FUTEX_WAIT, counts_[0], &time, nullptr, 0);
    } else if (bells_.empty() || bells_.size() > kMaxBells || !wait_for_any(bells_, counts_, nanoseconds)) {
        const timespec time =
            as_time(bells_.empty() ? nanoseconds : std::min(nanoseconds, kBlindNanoseconds));
        nanosleep(&time, nullptr);
    }
}

}  // namespace persia
