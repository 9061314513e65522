// Reads of a file, of those places that are in the system's memory: the kernel copies many in a system call,
// at a tenth of what a call for each costs.
//
// They are copied out of a mapping, but not by us: a page that can't be read after all, as the drive fails,
// is an error of the call then and not a signal that ends the process. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "persia/read_ring.h"

namespace persia {

class MappedReads {
  public:
    // None where the system refuses what it needs. The file must stay open; it may grow.
    static std::unique_ptr<MappedReads> make(int file);
    ~MappedReads();
    MappedReads(const MappedReads&) = delete;
    MappedReads& operator=(const MappedReads&) = delete;

    // Does those of the reads, in the order of places, that are in memory, and leaves the others: also those
    // that are long, or far from all others, for which a call of their own is no dearer.
    void read(std::vector<FileRead>& reads);
    // Leaves those reads that aren't in memory.
    void leave_missing(std::vector<FileRead>& reads);

  private:
    MappedReads(int file, int room) : file_(file), room_(room) {}

    bool map(std::uint64_t bytes);  // so many of the file; whether that could be done
    std::size_t copy(std::size_t first);

    int file_, room_;  // `room_` is memory that has a descriptor, for the kernel to write to
    std::byte* file_at_ = nullptr;
    std::byte* room_at_ = nullptr;
    std::uint64_t mapped_ = 0;
    // Working memory, kept from call to call.
    std::vector<unsigned char> resident_;
    std::vector<FileRead> present_;
};

}  // namespace persia
