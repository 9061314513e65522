// Reads of a file, of those places that are in the system's memory: they are copied out of a mapping, at a
// twentieth of what a system call for each costs.
//
// A page that can't be read after all, as the drive fails, is a signal (SIGBUS) then, which ends the copy and
// not the process; any other one goes to whom it went before the first file was mapped. Not thread-safe.
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

    // Does those of the reads that are in memory, and leaves the others: also those that are long, or far
    // from all others, for which a call of their own is no dearer.
    void read(std::vector<FileRead>& reads);
    // Leaves those reads that aren't in memory.
    void leave_missing(std::vector<FileRead>& reads);

  private:
    explicit MappedReads(int file) : file_(file) {}

    bool map(std::uint64_t bytes);  // so many of the file; whether that could be done
    bool knows_missing();
    // Puts those of some reads that are in memory to present_, and gives the end of the others, which begin
    // at `left`. Their pages are [first, last].
    std::size_t part(std::vector<FileRead>& reads, std::size_t begin, std::size_t end, std::uint64_t first,
                     std::uint64_t last, std::size_t left);
    std::size_t copy() const;  // the present ones; how many, from the first on

    int file_;
    std::byte* file_at_ = nullptr;
    std::uint64_t mapped_ = 0;
    // Working memory, kept from call to call.
    std::vector<unsigned char> resident_;
    std::vector<FileRead> present_;
};

}  // namespace persia
