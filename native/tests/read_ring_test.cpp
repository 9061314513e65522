#include "persia/read_ring.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "check.h"

using namespace persia;

namespace {

constexpr std::size_t kBytes = 1 << 20, kMost = 200;

// Reads of any number and length against the file's bytes; those beyond its end, or that cross it, are left.
void test_reads(int file, const std::vector<std::byte>& content) {
    std::mt19937_64 random(3);
    const auto ring = ReadRing::make(file);
    if (!ring) {
        std::puts("the kernel has no io_uring here");
        return;
    }
    for (const std::size_t count : {0u, 1u, 2u, 255u, 256u, 257u, 3000u, 1u}) {
        std::vector<std::byte> room(count * kMost);
        std::vector<FileRead> reads;
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t bytes = 1 + random() % kMost;
            const std::uint64_t offset = random() % (i % 10 == 0 ? 2 * kBytes : kBytes - kMost);
            reads.push_back({offset, room.data() + i * kMost, bytes});
        }
        const std::vector<FileRead> all = reads;
        ring->read(reads);
        std::size_t left = 0;
        for (const FileRead& each : all) {
            if (each.offset + each.bytes > kBytes) {
                CHECK(left < reads.size() && reads[left].to == each.to);
                ++left;
                continue;
            }
            CHECK(std::equal(each.to, each.to + each.bytes, content.begin() + each.offset));
        }
        CHECK(left == reads.size());
        CHECK(ring->usable());
    }
}

void test_refused(const char* name) {
    const int file = open(name, O_WRONLY | O_CLOEXEC);
    const auto ring = ReadRing::make(file);
    if (ring) {
        std::byte to[8];
        std::vector<FileRead> reads(500, {16, to, 8});
        ring->read(reads);
        CHECK(reads.size() == 500);
    }
    close(file);
}

}  // namespace

int main() {
    char name[] = "/tmp/read-ring-XXXXXX";
    const int file = mkstemp(name);
    std::mt19937_64 random(1);
    std::vector<std::byte> content(kBytes);
    for (std::byte& byte : content) byte = static_cast<std::byte>(random());
    CHECK(write(file, content.data(), kBytes) == static_cast<ssize_t>(kBytes));
    test_reads(file, content);
    test_refused(name);
    close(file);
    unlink(name);
    return 0;
}
