#include "persia/mapped_reads.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "persia/prefetch.h"

namespace persia {

#if defined(__linux__) && defined(MFD_CLOEXEC)

namespace {

constexpr std::size_t kMostAtOnce = 1024;  // IOV_MAX
constexpr std::size_t kMostBytes = 4096;   // a longer read is worth a call of its own
constexpr std::size_t kRoom = 512 << 10;
constexpr std::uint64_t kLeastMapped = 1 << 20;
// A question for pages takes 0.9 µs and 1.8 ns for each of them: reads that few others lie near are left.
constexpr std::uint64_t kGap = 400, kMostPages = 4096;
constexpr std::size_t kLeastReads = 4;

std::uint64_t page_bytes() {
    static const auto bytes = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

std::uint64_t end_of(const FileRead& read) { return read.offset + read.bytes; }

}  // namespace

std::unique_ptr<MappedReads> MappedReads::make(int file) {
    const int room = memfd_create("persia-reads", MFD_CLOEXEC);
    if (room < 0) return nullptr;
    std::unique_ptr<MappedReads> made(new MappedReads(file, room));
    if (ftruncate(room, kRoom) < 0 || !made->map(kLeastMapped)) return nullptr;
    void* const at = mmap(nullptr, kRoom, PROT_READ, MAP_SHARED, room, 0);
    if (at == MAP_FAILED) return nullptr;
    made->room_at_ = static_cast<std::byte*>(at);
    return made;
}

MappedReads::~MappedReads() {
    if (file_at_ != nullptr) munmap(file_at_, mapped_);
    if (room_at_ != nullptr) munmap(room_at_, kRoom);
    close(room_);
}

bool MappedReads::map(std::uint64_t bytes) {
    if (bytes <= mapped_) return true;
    const std::uint64_t more =
        (std::max(bytes, 2 * mapped_) + kLeastMapped - 1) / kLeastMapped * kLeastMapped;
    void* const at = file_at_ == nullptr ? mmap(nullptr, more, PROT_READ, MAP_SHARED, file_, 0)
                                         : mremap(file_at_, mapped_, more, MREMAP_MAYMOVE);
    if (at == MAP_FAILED) return false;
    file_at_ = static_cast<std::byte*>(at);
    mapped_ = more;
    madvise(file_at_, mapped_, MADV_RANDOM);
    return true;
}

void MappedReads::leave_missing(std::vector<FileRead>& reads) {
    present_.clear();
    std::uint64_t most = 0;
    for (const FileRead& each : reads) most = std::max(most, end_of(each));
    if (reads.empty() || !map(most)) return;
    const std::uint64_t page = page_bytes();
    resident_.resize(kMostPages);
    std::size_t left = 0;
    for (std::size_t i = 0, end = 0; i < reads.size(); i = end) {
        const std::uint64_t first = reads[i].offset / page;
        std::uint64_t last = first;
        bool small = true;
        for (; end < reads.size(); ++end) {
            const std::uint64_t until = (end_of(reads[end]) - 1) / page;
            if (end > i && (reads[end].offset / page > last + kGap || until - first >= kMostPages)) break;
            small = small && until - first < kMostPages;
            last = std::max(last, until);
        }
        const bool known = small && end - i >= kLeastReads &&
                           mincore(file_at_ + first * page, (last - first + 1) * page, resident_.data()) == 0;
        for (std::size_t k = i; k < end; ++k) {
            const FileRead& each = reads[k];
            bool present = known && each.bytes <= kMostBytes;
            for (std::uint64_t p = each.offset / page; present && p <= (end_of(each) - 1) / page; ++p) {
                present = (resident_[p - first] & 1) != 0;
            }
            if (present) {
                present_.push_back(each);
            } else {
                reads[left++] = each;
            }
        }
    }
    reads.resize(left);
}

// Copies some of the present ones, from the first on; how many, none if that fails.
std::size_t MappedReads::copy(std::size_t first) {
    iovec from[kMostAtOnce];
    std::size_t count = 0, bytes = 0;
    for (; first + count < present_.size() && count < kMostAtOnce; ++count) {
        const FileRead& each = present_[first + count];
        if (bytes + each.bytes > kRoom) break;
        from[count] = {file_at_ + each.offset, each.bytes};
        prefetch_cold(file_at_ + each.offset, each.bytes);  // the kernel copies one after the other
        bytes += each.bytes;
    }
    const ssize_t got = pwritev(room_, from, static_cast<int>(count), 0);
    if (got < 0 || static_cast<std::size_t>(got) != bytes) return 0;
    const std::byte* at = room_at_;
    for (std::size_t i = first; i < first + count; at += present_[i++].bytes) {
        std::memcpy(present_[i].to, at, present_[i].bytes);
    }
    return count;
}

void MappedReads::read(std::vector<FileRead>& reads) {
    leave_missing(reads);
    std::size_t done = 0;
    while (done < present_.size()) {
        const std::size_t copied = copy(done);
        if (copied == 0) break;
        done += copied;
    }
    // What couldn't be copied is read by a call that can say why.
    reads.insert(reads.end(), present_.begin() + static_cast<std::ptrdiff_t>(done), present_.end());
}

#else

std::unique_ptr<MappedReads> MappedReads::make(int) { return nullptr; }
MappedReads::~MappedReads() = default;
void MappedReads::read(std::vector<FileRead>&) {}
void MappedReads::leave_missing(std::vector<FileRead>&) {}

#endif

}  // namespace persia
