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
constexpr std::size_t kOwnRegionBytes = std::size_t{1} << 20;  // blocks from here on get a mapping each

class MapFailed : public std::bad_alloc {
  public:
    explicit MapFailed(std::size_t bytes)
        : text_("a table could not get " + std::to_string(bytes) + " more bytes of memory") {}
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

std::size_t round_up(std::size_t bytes, std::size_t unit) { return (bytes + unit - 1) / unit * unit; }

void* map_pages(std::size_t bytes) {
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw MapFailed(bytes);
    return base;
}

}  // namespace

Arena::~Arena() {
    for (const Region& region : regions_) munmap(region.base, region.bytes);
}

void* Arena::map(std::size_t bytes) {
    regions_.reserve(regions_.size() + 1);  // so that nothing throws once the memory is mapped
    bytes = round_up(bytes, bytes < kHugePage ? 4096 : kHugePage);
    char* base;
    if (bytes < kHugePage) {
        base = static_cast<char*>(map_pages(bytes));
    } else {
        // Huge pages must be aligned: map one more and cut both ends off.
        auto* raw = static_cast<char*>(map_pages(bytes + kHugePage));
        const auto misaligned = reinterpret_cast<std::uintptr_t>(raw) % kHugePage;
        const std::size_t head = misaligned == 0 ? 0 : kHugePage - misaligned;
        base = raw + head;
        if (head != 0) munmap(raw, head);
        munmap(base + bytes, kHugePage - head);
        madvise(base, bytes, MADV_HUGEPAGE);  // advice: a kernel without huge pages is merely slower
    }
    regions_.push_back({base, bytes});
    mapped_bytes_ += bytes;
    return base;
}

void* Arena::allocate(std::size_t bytes) {
    bytes = round_up(bytes, 64);
    const auto outgrown = free_.find(bytes);
    if (outgrown != free_.end() && !outgrown->second.empty()) {
        void* block = outgrown->second.back();
        outgrown->second.pop_back();
        return block;
    }
    if (bytes >= kOwnRegionBytes) return map(bytes);
    if (static_cast<std::size_t>(end_ - next_) < bytes) {
        next_ = static_cast<char*>(map(next_region_bytes_));
        end_ = next_ + next_region_bytes_;
        next_region_bytes_ = std::min(2 * next_region_bytes_, kMaxRegionBytes);
    }
    void* block = next_;
    next_ += bytes;
    return block;
}

void Arena::release(void* block, std::size_t bytes) {
    bytes = round_up(bytes, 64);
    if (bytes < kOwnRegionBytes) {
        free_[bytes].push_back(block);
        return;
    }
    const auto region = std::find_if(regions_.begin(), regions_.end(),
                                     [block](const Region& candidate) { return candidate.base == block; });
    mapped_bytes_ -= region->bytes;
    munmap(region->base, region->bytes);
    regions_.erase(region);
}

std::size_t Arena::held_bytes() const {
    const std::size_t untouched = static_cast<std::size_t>(end_ - next_) / kHugePage * kHugePage;
    std::size_t bytes = mapped_bytes_ - untouched + regions_.capacity() * sizeof(Region);
    for (const auto& [size, blocks] : free_) bytes += sizeof size + blocks.capacity() * sizeof(void*);
    return bytes;
}

}  // namespace persia
