// Sums arrays of the ranks of a node, which lie in memory that they share.
//
// Each rank fills its slot of a bucket and posts it. Once all have, whoever is awake sums: chunk by chunk, so
// that several can share a large bucket, and so that nobody waits for a sleeper to do its part of a small
// one. Each element is added in the order of ranks, whoever does it: results are the same bits in every run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/bell.h"
#include "persia/codec.h"
#include "persia/span.h"

namespace persia {

class NodeSum {
  public:
    static constexpr std::size_t kChunk = 1 << 15;  // elements; 128 KiB of sums

    // members: each rank's memory, `bytes` long, zero at the start, on a cache line, in the order of ranks.
    // lengths: elements of each bucket; all ranks give the same. wire: a format of single elements.
    NodeSum(std::vector<Span<std::uint8_t>> members, std::size_t rank,
            const std::vector<std::size_t>& lengths, Wire wire);
    // What a rank's memory must hold; the first rank's also has the sums.
    static std::size_t bytes(const std::vector<std::size_t>& lengths, Wire wire, bool first);

    // Where the slots of a rank and the sums begin in its memory; buckets follow each other, unpadded.
    static std::size_t slots_offset() { return 64; }
    static std::size_t sums_offset(const std::vector<std::size_t>& lengths, Wire wire);

    // The next bucket's slot is filled; buckets are posted in their order, again and again. A slot may be
    // filled again when its bucket was summed, and a sum is there until its rank posts that bucket again.
    void post();
    // Sums what all have posted and nobody has taken yet; doesn't wait.
    void help();
    // Whether the sum of the bucket that was posted as the `number`th (from 0) is there.
    bool summed(std::uint64_t number) const;
    // Helps, and waits until it is there; false if it isn't after a spin and one sleep.
    bool wait_summed(std::uint64_t number, std::uint64_t spin_nanoseconds, std::uint64_t sleep_nanoseconds);
    // The first rank may tell the others that it has added what the sums lacked, bucket by bucket.
    void publish();
    bool wait_published(std::uint64_t number, std::uint64_t spin_nanoseconds,
                        std::uint64_t sleep_nanoseconds);

  private:
    struct Chunk {
        std::size_t bucket, begin, end;  // elements, of all buckets
    };
    bool all_posted(std::uint64_t number) const;
    void sum(const Chunk& chunk) const;
    void ring_others() const;
    template <typename Done>
    bool wait(const Done& done, std::uint64_t spin_nanoseconds, std::uint64_t sleep_nanoseconds);

    std::vector<Span<std::uint8_t>> members_;
    std::size_t rank_;
    Wire wire_;
    std::vector<Chunk> chunks_;
    std::vector<std::uint64_t> chunks_of_;  // by bucket
    std::vector<Bell*> own_bell_;
    std::uint64_t* published_;  // words in the first rank's memory
    std::uint64_t* taken_;      // chunks that somebody sums or has summed
    std::uint64_t* done_;       // chunks summed, by bucket, each on a line of its own
    float* sums_;
    std::uint64_t posted_ = 0;
};

}  // namespace persia
