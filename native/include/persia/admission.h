// Which unseen keys get a row.
//
//   always       each
//   after        those that `after` steps have seen, counted by a sketch of bounded memory that may count too
//                high (keys that share cells), never too low except by aging
//   probability  those whose hash says so: a key's lot never changes
//
// A pull decides by what was counted up to the last end of a step, so neither the order of pulls within a
// step nor how many batches of it have the key matters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "persia/key.h"

namespace persia {

struct AdmissionOptions {
    std::uint32_t after = 1;  // 1: always
    double probability = 1;
};

class Admission {
  public:
    // Throws std::invalid_argument unless after is 1 to 255 and probability above 0 and at most 1.
    Admission(AdmissionOptions options, std::uint64_t seed, std::uint32_t num_buckets,
              std::uint32_t bucket_capacity);

    // Whether an unseen key gets a row now; if not, and sightings count, this one is noted.
    bool admits(std::uint32_t bucket, Key key, std::uint32_t step) {
        if (always_) return true;
        return decide(bucket, key, step);
    }

    // Counts what was noted for steps up to `step`, each key once a step.
    void count_sightings(std::uint32_t step, const BucketOf& bucket_of, std::uint32_t first_bucket);

    // The counts of one moment, copied bucket by bucket while counting goes on.
    void begin_snapshot();
    void take_snapshot(std::uint32_t bucket, std::uint32_t& counted, std::vector<std::uint8_t>& counts);
    void end_snapshot();
    // Throws std::invalid_argument for a number of counts that this table doesn't have per bucket.
    void restore(std::uint32_t bucket, std::uint32_t counted, const std::vector<std::uint8_t>& counts);

    bool always() const { return always_; }         // each key
    std::uint32_t cells() const { return cells_; }  // counts per bucket
    std::size_t held_bytes() const;
    // The counts of all buckets.
    static std::size_t count_bytes(AdmissionOptions options, std::uint32_t num_buckets,
                                   std::uint32_t bucket_capacity);

  private:
    struct Kept {
        bool here = false;    // what it was at the mark
        bool needed = false;  // not copied yet
        std::uint32_t counted = 0;
        std::vector<std::uint8_t> counts;
    };

    struct Sighting {
        std::uint32_t step;
        Key key;

        bool operator<(const Sighting& other) const {
            return step != other.step ? step < other.step : key < other.key;
        }
        bool operator==(const Sighting& other) const { return step == other.step && key == other.key; }
    };
    struct Free {
        void operator()(std::uint8_t* cells) const { std::free(cells); }
    };

    void keep(std::uint32_t bucket);
    bool decide(std::uint32_t bucket, Key key, std::uint32_t step);
    std::uint8_t* cell(std::uint32_t bucket, Key key, unsigned which) const;

    bool always_;
    AdmissionOptions options_;
    std::uint64_t seed_;
    std::uint64_t admitted_below_ = 0;  // of a key's hash, for the probability
    std::uint32_t cells_ = 0;           // per bucket, a power of two
    std::uint32_t num_buckets_;
    std::unique_ptr<std::uint8_t[], Free> counts_;  // [num_buckets, cells]
    std::vector<std::uint32_t> counted_;            // per bucket, since its counts were last halved
    std::vector<Sighting> sightings_;
    std::vector<Kept> kept_;  // by bucket, while a snapshot is taken
};

}  // namespace persia
