// Memory of one table shard: large anonymous mappings, handed out in pieces and never taken back.
//
// What a table keeps only grows: rows don't move, and the index grows in place (key_index.h). So there is no
// bookkeeping per piece, and a piece is zeros, as the system gives them.
#pragma once

#include <cstddef>
#include <vector>

namespace persia {

class Arena {
  public:
    // Pretended: addresses without memory, to count what would be held.
    enum class Kind { kMapped, kPretended };

    explicit Arena(Kind kind = Kind::kMapped) : kind_(kind) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // 64-byte aligned zeros. Throws a std::bad_alloc that says how much was asked for.
    void* allocate(std::size_t bytes);

    // All memory taken from the system and what the bookkeeping itself takes. Not the pages of the newest
    // region that were never handed out: the system gives memory to a page when it is first written.
    std::size_t held_bytes() const;
    // The unit in which the system gives memory to the newest region.
    std::size_t page_bytes() const;

  private:
    struct Region {
        void* base;
        std::size_t bytes;
    };

    struct Free {
        char* next = nullptr;
        char* end = nullptr;

        std::size_t bytes() const { return static_cast<std::size_t>(end - next); }
    };

    void map(std::size_t bytes);

    Kind kind_;
    std::vector<Region> regions_;
    Free newest_;  // of the newest region
    Free spare_;   // the largest end of another one, for smaller pieces
    std::size_t next_region_bytes_ = std::size_t{64} << 10;
    std::size_t mapped_bytes_ = 0;
};

}  // namespace persia
