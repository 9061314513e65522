#include "persia/mapped_reads.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "persia/prefetch.h"

namespace persia {

#ifdef __linux__

namespace {

constexpr std::size_t kMostBytes = 4096;  // a longer read is worth a call of its own
constexpr std::uint64_t kLeastMapped = 1 << 20;
constexpr std::uint64_t kBehind = 4 << 20;  // the system's pages may be so large
// A question for pages takes 0.9 µs and 1.8 ns for each of them: reads that few others lie near are left.
constexpr std::uint64_t kGap = 400, kMostPages = 4096;
constexpr std::size_t kLeastReads = 4;
constexpr std::size_t kAhead = 12;  // reads whose memory is asked for before they are copied

unsigned page_shift() {
    static const auto shift =
        static_cast<unsigned>(__builtin_ctzl(static_cast<unsigned long>(sysconf(_SC_PAGESIZE))));
    return shift;
}

std::uint64_t page_of(std::uint64_t offset) { return offset >> page_shift(); }
std::uint64_t first_page(const FileRead& read) { return page_of(read.offset); }
std::uint64_t last_page(const FileRead& read) { return page_of(read.offset + read.bytes - 1); }

struct sigaction before_us;
// Where a copy of this thread goes on that meets a page that can't be read. Of the initial model: a handler
// may not allocate it.
thread_local sigjmp_buf* escape __attribute__((tls_model("initial-exec"))) = nullptr;

void on_bus_error(int signal, siginfo_t* info, void*) {
    const bool fault = info->si_code > 0;
    if (fault && escape != nullptr) siglongjmp(*escape, 1);
    sigaction(signal, &before_us, nullptr);
    if (!fault) raise(signal);  // a fault comes again by itself
}

bool catch_bus_errors() {
    struct sigaction ours{};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO;
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, &before_us) == 0;
}

}  // namespace

std::unique_ptr<MappedReads> MappedReads::make(int file) {
    static const bool caught = catch_bus_errors();
    std::unique_ptr<MappedReads> made(new MappedReads(file));
    if (!caught || !made->knows_missing()) return nullptr;
    return made;
}

// Whether a page far behind the file's end isn't in memory. Of somebody else's file that may only be read the
// system says that all pages are: each copy would wait for the drive then, and nothing be asked for before.
bool MappedReads::knows_missing() {
    struct stat found{};
    unsigned char resident = 0;
    if (fstat(file_, &found) != 0) return false;
    const std::uint64_t behind =
        (page_of(static_cast<std::uint64_t>(found.st_size)) << page_shift()) + kBehind;
    return map(behind + 1) && mincore(file_at_ + behind, 1, &resident) == 0 && (resident & 1) == 0;
}

MappedReads::~MappedReads() {
    if (file_at_ != nullptr) munmap(file_at_, mapped_);
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

std::size_t MappedReads::part(std::vector<FileRead>& reads, std::size_t begin, std::size_t end,
                              std::uint64_t first, std::uint64_t last, std::size_t left) {
    const bool known = last - first < kMostPages && end - begin >= kLeastReads &&
                       mincore(file_at_ + (first << page_shift()), (last - first + 1) << page_shift(),
                               resident_.data()) == 0;
    for (std::size_t i = begin; i < end; ++i) {
        const FileRead each = reads[i];
        bool present = known && each.bytes <= kMostBytes;
        for (std::uint64_t p = first_page(each); present && p <= last_page(each); ++p) {
            present = (resident_[p - first] & 1) != 0;
        }
        if (present) {
            present_.push_back(each);
        } else {
            reads[left++] = each;
        }
    }
    return left;
}

void MappedReads::leave_missing(std::vector<FileRead>& reads) {
    present_.clear();
    std::uint64_t first = UINT64_MAX, last = 0;
    for (const FileRead& each : reads) {
        first = std::min(first, first_page(each));
        last = std::max(last, last_page(each));
    }
    if (reads.empty() || !map((last + 1) << page_shift())) return;
    resident_.resize(kMostPages);
    std::size_t left = 0;
    if (last - first < std::min<std::uint64_t>(kMostPages, reads.size() * kGap)) {
        left = part(reads, 0, reads.size(), first, last, left);
        reads.resize(left);
        return;
    }
    std::sort(reads.begin(), reads.end(),
              [](const FileRead& a, const FileRead& b) { return a.offset < b.offset; });
    for (std::size_t i = 0, end = 0; i < reads.size(); i = end) {
        first = last = first_page(reads[i]);
        for (; end < reads.size(); ++end) {
            const std::uint64_t until = last_page(reads[end]);
            if (end > i && (first_page(reads[end]) > last + kGap || until - first >= kMostPages)) break;
            last = std::max(last, until);
        }
        left = part(reads, i, end, first, last, left);
    }
    reads.resize(left);
}

std::size_t MappedReads::copy() const {
    sigjmp_buf here;
    volatile std::size_t done = 0;
    if (sigsetjmp(here, 1) == 0) {
        escape = &here;
        std::atomic_signal_fence(std::memory_order_seq_cst);  // no copy is made before, and none later
        for (std::size_t i = 0; i < present_.size(); ++i) {
            if (i + kAhead < present_.size()) {
                const FileRead& later = present_[i + kAhead];
                prefetch_cold(file_at_ + later.offset, later.bytes);
            }
            std::memcpy(present_[i].to, file_at_ + present_[i].offset, present_[i].bytes);
            done = i + 1;
        }
    }
    std::atomic_signal_fence(std::memory_order_seq_cst);
    escape = nullptr;
    return done;
}

void MappedReads::read(std::vector<FileRead>& reads) {
    leave_missing(reads);
    if (present_.empty()) return;
    // What couldn't be copied is read by a call that can say why.
    reads.insert(reads.end(), present_.begin() + static_cast<std::ptrdiff_t>(copy()), present_.end());
}

#else

std::unique_ptr<MappedReads> MappedReads::make(int) { return nullptr; }
MappedReads::~MappedReads() = default;
void MappedReads::read(std::vector<FileRead>&) {}
void MappedReads::leave_missing(std::vector<FileRead>&) {}

#endif

}  // namespace persia
