// Many reads of one file under way at a time by io_uring, a system call for up to kDepth of them. What is in
// memory is copied at once, a third cheaper than by a call for each; other reads wait in the kernel, which
// needs no threads of ours. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace persia {

struct FileRead {
    std::uint64_t offset;
    std::byte* to;
    std::size_t bytes;
};

class ReadRing {
  public:
    static constexpr unsigned kDepth = 256;

    // None where the kernel has none or refuses it, as containers often do.
    static std::unique_ptr<ReadRing> make(int file);
    ~ReadRing();
    ReadRing(const ReadRing&) = delete;
    ReadRing& operator=(const ReadRing&) = delete;

    // Does the reads, but leaves those in `reads` that failed or came short, for whoever can say why.
    void read(std::vector<FileRead>& reads);
    // Whether it may be used again; not if the kernel doesn't know such reads.
    bool usable() const { return usable_; }

  private:
    struct Queues;  // memory that is shared with the kernel
    ReadRing(int ring, std::unique_ptr<Queues> queues);

    int ring_;
    std::unique_ptr<Queues> queues_;
    bool usable_ = true;
};

}  // namespace persia
