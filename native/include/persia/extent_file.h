// A file without a name, of extents of one size: what a process keeps on disk as long as it lives.
//
// Nobody else can see or open it, and the system takes it back however the process ends, so a crash leaves
// nothing behind. Not thread-safe. All calls throw DiskError, which says what failed and where, if the system
// refuses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "persia/mapped_reads.h"
#include "persia/read_ring.h"
#include "persia/thread_team.h"

namespace persia {

struct DiskError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
// Nothing more can be written; what was written before can be read.
struct DiskFull : DiskError {
    using DiskError::DiskError;
};

class ExtentFile {
  public:
    // In `folder`, which must be there.
    ExtentFile(const std::string& folder, std::size_t extent_bytes);
    // One that is there, of others, to be read.
    explicit ExtentFile(const std::string& path);
    ~ExtentFile();
    ExtentFile(const ExtentFile&) = delete;
    ExtentFile& operator=(const ExtentFile&) = delete;

    using Read = FileRead;
    // Any number of reads, in the order of places, many at a time if there are many.
    void read(std::vector<Read>& reads) const;
    // Asks the system to begin reads, without waiting for them, but for those that are in memory: whether
    // there were others.
    bool ask_for(std::vector<Read>& reads) const;
    void ask_for(std::uint64_t offset, std::size_t bytes) const;
    void write(std::uint32_t extent, const std::byte* from);  // throws DiskFull
    // Whether extents that are written one after the other, and lie so, may be held to be written together.
    void gather(bool gathers) { gathers_ = gathers; }
    // Writes what is held. Throws DiskFull if that can't be done: it can still be read, and is tried again.
    void write_held();
    std::size_t held_bytes() const { return held_.capacity(); }

    const std::string& folder() const { return folder_; }
    std::size_t extent_bytes() const { return extent_bytes_; }

  private:
    MappedReads* mapped() const;             // none where the system refuses it
    bool in_memory(const Read& read) const;  // and then has been read
    bool is_held(const Read& read) const;    // and then has been read
    void read_one(const Read& read) const;
    void write_at(std::uint64_t offset, const std::byte* from, std::size_t bytes) const;
    std::string says(const char* what, int error) const;

    std::string folder_;
    std::size_t extent_bytes_;
    int file_ = -1;
    bool gathers_ = false;
    std::uint64_t held_at_ = 0;
    std::vector<std::byte> held_;
    // Once they are needed; threads where the kernel refuses a ring.
    mutable std::unique_ptr<MappedReads> mapped_;
    mutable std::unique_ptr<ReadRing> ring_;
    mutable std::unique_ptr<ThreadTeam> readers_;
    mutable bool has_no_map_ = false, has_no_ring_ = false;
};

}  // namespace persia
