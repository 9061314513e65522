#include "persia/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <string>

namespace persia {
namespace {

constexpr std::size_t kMaxRegionBytes = std::size_t{64} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kHugeRegionBytes = 2 * kHugePage;  // a small table would waste most of a huge page
constexpr std::size_t kPage = 4096;

class MapFailed : public std::bad_alloc {
  public:
    explicit MapFailed(std::size_t bytes)
        : text_("a table could not get " + std::to_string(bytes) + " more bytes of memory") {}
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

char* map_pages(std::size_t bytes) {
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw MapFailed(bytes);
    return static_cast<char*>(base);
}

char* map_small_pages(std::size_t bytes) {
    char* base = map_pages(bytes);
    // Else a system that always uses huge pages would do so for the regions of many small tables together.
    madvise(base, bytes, MADV_NOHUGEPAGE);
    return base;
}

char* map_huge_pages(std::size_t bytes) {
    // They must be aligned: map one more and cut both ends off.
    char* raw = map_pages(bytes + kHugePage);
    const auto misaligned = reinterpret_cast<std::uintptr_t>(raw) % kHugePage;
    const std::size_t head = misaligned == 0 ? 0 : kHugePage - misaligned;
    if (head != 0) munmap(raw, head);
    munmap(raw + head + bytes, kHugePage - head);
    madvise(raw + head, bytes, MADV_HUGEPAGE);  // advice: a kernel without huge pages is merely slower
    return raw + head;
}

}  // namespace

Arena::~Arena() {
    if (kind_ == Kind::kPretended) return;
    for (const Region& region : regions_) munmap(region.base, region.bytes);
}

// A new region for at least so many bytes.
void Arena::map(std::size_t bytes) {
    regions_.reserve(regions_.size() + 1);  // so that nothing throws once the memory is mapped
    bytes = std::max(bytes, next_region_bytes_);
    const bool huge = bytes >= kHugeRegionBytes;
    bytes = round_up(bytes, huge ? kHugePage : kPage);
    char* base = reinterpret_cast<char*>(kHugePage);
    if (kind_ == Kind::kMapped) base = huge ? map_huge_pages(bytes) : map_small_pages(bytes);
    regions_.push_back({base, bytes});
    mapped_bytes_ += bytes;
    next_region_bytes_ = std::min(2 * next_region_bytes_, kMaxRegionBytes);
    if (newest_.bytes() > spare_.bytes()) spare_ = newest_;
    newest_ = {base, base + bytes};
}

void* Arena::allocate(std::size_t bytes) {
    bytes = round_up(bytes, 64);
    if (bytes > spare_.bytes() && bytes > newest_.bytes()) map(bytes);
    Free& from = bytes <= spare_.bytes() ? spare_ : newest_;
    void* block = from.next;
    from.next += bytes;
    return block;
}

std::size_t Arena::page_bytes() const {
    return !regions_.empty() && regions_.back().bytes >= kHugeRegionBytes ? kHugePage : kPage;
}

std::size_t Arena::held_bytes() const {
    const std::size_t untouched = newest_.bytes() / page_bytes() * page_bytes();
    return mapped_bytes_ - untouched + regions_.capacity() * sizeof(Region);
}

}  // namespace persia
