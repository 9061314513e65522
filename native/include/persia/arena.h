// Memory of one table: large anonymous mappings, handed out in pieces.
//
// Rows never move and a table only gives memory back when it goes, so there is no per-piece bookkeeping.
// The exception are index arrays, which are outgrown: their blocks are kept for the next index of that size.
#pragma once

#include <cstddef>
#include <unordered_map>
#include <vector>

namespace persia {

class Arena {
  public:
    Arena() = default;
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // 64-byte aligned, not initialised. Throws a std::bad_alloc that says how much was asked for.
    void* allocate(std::size_t bytes);
    // `bytes` as in allocate().
    void release(void* block, std::size_t bytes);

    // All memory taken from the system and what the bookkeeping itself takes. Not the pages of the newest
    // region that were never handed out: the system gives memory to a page when it is first written.
    std::size_t held_bytes() const;

  private:
    struct Region {
        void* base;
        std::size_t bytes;
    };

    void* map(std::size_t bytes);

    std::vector<Region> regions_;
    std::unordered_map<std::size_t, std::vector<void*>> free_;  // outgrown blocks by size
    char* next_ = nullptr;                                      // free part of the newest shared region
    char* end_ = nullptr;
    std::size_t next_region_bytes_ = std::size_t{1} << 20;
    std::size_t mapped_bytes_ = 0;
};

}  // namespace persia
