#include "persia/mapped_reads.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

#include "check.h"

using namespace persia;

namespace {

constexpr std::size_t kBytes = 6 << 20, kMost = 6000, kLong = 4096, kFew = 4;

std::vector<std::byte> bytes_of(std::size_t count) {
    std::mt19937_64 random(1);
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
}

void put(int file, const std::vector<std::byte>& content, std::size_t begin, std::size_t end) {
    CHECK(pwrite(file, content.data() + begin, end - begin, static_cast<off_t>(begin)) ==
          static_cast<ssize_t>(end - begin));
}

struct Asked {
    std::vector<std::byte> room;
    std::vector<FileRead> all, reads;

    Asked(std::size_t count, std::uint64_t below, std::size_t most, std::uint64_t seed) : room(count * most) {
        std::mt19937_64 random(seed);
        for (std::size_t i = 0; i < count; ++i) {
            all.push_back({random() % below, room.data() + i * most, 1 + random() % most});
        }
        std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.offset < b.offset; });
        reads = all;
    }
    bool is_left(const FileRead& read) const {
        return std::any_of(reads.begin(), reads.end(),
                           [&](const FileRead& left) { return left.to == read.to; });
    }
};

// All but the long ones, or few, and what lies beyond the end, are read; also of parts that the file has got
// since.
void test_reads(const char* name) {
    const int file = open(name, O_RDWR | O_CLOEXEC);
    const std::vector<std::byte> content = bytes_of(kBytes);
    put(file, content, 0, kBytes / 4);
    const auto mapped = MappedReads::make(file);
    if (!mapped) {
        std::puts("the system refuses what copies of mapped pages need");
        return;
    }
    std::uint64_t seed = 0;
    for (const std::size_t size : {kBytes / 4, kBytes}) {
        put(file, content, 0, size);
        for (const std::size_t count : {0u, 1u, 2u, 1024u, 1025u, 3000u}) {
            Asked asked(count, 2 * size, kMost, ++seed);
            mapped->read(asked.reads);
            std::size_t left = 0;
            for (const FileRead& each : asked.all) {
                if (count < kFew || each.bytes > kLong || each.offset + each.bytes > size) {
                    CHECK(asked.is_left(each));
                    ++left;
                    continue;
                }
                CHECK(std::equal(each.to, each.to + each.bytes, content.begin() + each.offset));
            }
            CHECK(asked.reads.size() == left);
        }
    }
    close(file);
}

// What isn't in memory is left, in its order. Where the system keeps the pages all the same, nothing is.
void test_missing(const char* name) {
    const int file = open(name, O_RDWR | O_CLOEXEC);
    const auto mapped = MappedReads::make(file);
    if (!mapped) return;
    fsync(file);
    posix_fadvise(file, 0, kBytes / 2, POSIX_FADV_DONTNEED);
    const std::vector<std::byte> content = bytes_of(kBytes);
    Asked asked(2000, kBytes - kLong, 100, 7);
    mapped->leave_missing(asked.reads);
    CHECK(std::is_sorted(asked.reads.begin(), asked.reads.end(),
                         [](auto& a, auto& b) { return a.offset < b.offset; }));
    for (const FileRead& each : asked.reads) CHECK(each.offset <= kBytes / 2);
    const std::size_t missing = asked.reads.size();
    asked.reads = asked.all;
    mapped->read(asked.reads);
    CHECK(asked.reads.size() == missing);
    for (const FileRead& each : asked.all) {
        if (asked.is_left(each)) continue;
        CHECK(std::equal(each.to, each.to + each.bytes, content.begin() + each.offset));
    }
    close(file);
}

// Pages that are gone when they are copied, as if the drive failed: no signal, and the reads are left.
void test_pages_that_go(const char* name) {
    const int file = open(name, O_RDWR | O_CLOEXEC);
    const auto mapped = MappedReads::make(file);
    if (!mapped) return;
    const std::vector<std::byte> content = bytes_of(kBytes);
    std::atomic<bool> done{false};
    std::thread other([&] {
        while (!done) {
            if (ftruncate(file, 0) != 0) break;
            put(file, content, 0, 64 << 10);
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    });
    std::size_t read = 0;
    for (std::uint64_t seed = 0; seed < 3000; ++seed) {
        Asked asked(64, 60 << 10, 80, seed);
        mapped->read(asked.reads);
        read += asked.all.size() - asked.reads.size();
    }
    done = true;
    other.join();
    std::printf("%zu of %d reads beside a file that comes and goes\n", read, 64 * 3000);
    close(file);
}

// A signal that isn't of a copy goes to whom it went before, be it of a page that isn't there or of somebody.
void test_other_signals(const char* name) {
    constexpr int kTold = 17;
    for (const bool of_page : {true, false}) {
        const pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            signal(SIGBUS, [](int) { _exit(kTold); });
            const int file = open(name, O_RDWR | O_CLOEXEC);
            const auto mapped = MappedReads::make(file);
            if (!mapped) _exit(kTold);
            put(file, bytes_of(1 << 12), 0, 1 << 12);
            Asked asked(64, 1 << 11, 80, 1);
            mapped->read(asked.reads);
            CHECK(asked.reads.empty());
            if (of_page) {
                auto* const at =
                    static_cast<volatile char*>(mmap(nullptr, 1 << 20, PROT_READ, MAP_SHARED, file, 0));
                CHECK(at != MAP_FAILED);
                (void)at[(1 << 20) - 1];
            } else {
                kill(getpid(), SIGBUS);
            }
            _exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == kTold);
    }
}

// The system doesn't tell of a file of somebody else's, which may only be read, what of it is in memory.
void test_files_of_others(const char* name) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const bool root = geteuid() == 0;
        const int file = open(root ? name : "/bin/sh", O_RDONLY | O_CLOEXEC);
        CHECK(file >= 0);
        CHECK(!root || seteuid(65534) == 0);
        CHECK(!MappedReads::make(file));
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main() {
    char name[] = "/tmp/mapped-reads-XXXXXX";
    close(mkstemp(name));
    test_other_signals(name);  // while nobody has mapped a file
    test_reads(name);
    test_files_of_others(name);
    test_missing(name);
    test_pages_that_go(name);
    unlink(name);
    return 0;
}
