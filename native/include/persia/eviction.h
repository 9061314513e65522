// Which rows of a bucket go when it is over its capacity: those with the least (stamp, key).
//
// A policy says what a row's stamp is:
//   lru  the last step that used it (exact: pulls of earlier steps that come late don't lower it)
//   lfu  how many pulls used it, new rows starting just above the last one that was evicted ("dynamic aging":
//        else a full bucket would evict each new row before it could be used again)
// Where what goes isn't lost, as with a disk tier, rows that only one step used may go first: see
// keep_used(). With a time to live, rows that no step used for more than `ttl` steps are gone, whether or not
// they were swept away yet; only with lru, whose stamps are steps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "persia/key_index.h"

namespace persia {

class Eviction {
  public:
    static constexpr std::uint32_t kMaxStamp = UINT32_MAX - 1;

    // policy: "lru" or "lfu". ttl: steps, 0 for none. Throws std::invalid_argument for another policy, or for
    // a ttl with lfu.
    Eviction(const std::string& policy, std::uint32_t ttl, std::uint32_t num_buckets);

    // The stamp of a new row that `step` uses.
    std::uint32_t first(std::uint32_t bucket, Key key, std::uint32_t step) {
        const std::uint32_t stamp = lfu_ ? buckets_[bucket].age + 1 : step;
        expect(bucket, key, stamp);
        return stamp;
    }
    // Notes that `step` uses a row.
    void used(std::uint32_t bucket, Key key, std::uint32_t step, std::uint32_t& stamp) {
        if (lfu_) {
            stamp += stamp != kMaxStamp;
        } else if (step > stamp) {
            stamp = step;
        } else {
            return;
        }
        expect(bucket, key, stamp);
    }
    // Whether all that used() and expired() do for pulls of `step` is to raise a lesser stamp to it.
    bool plain(std::uint32_t step) const { return !lfu_ && ttl_ == 0 && step > newest_of_all_; }
    // Notes the stamp of a row that comes from a checkpoint.
    void restored(std::uint32_t bucket, Key key, std::uint32_t stamp, bool only_row);

    // What decides about rows to come, beside the stamps of those that are here.
    std::vector<std::uint32_t> ages() const;
    void restore_age(std::uint32_t bucket, std::uint32_t age) { buckets_[bucket].age = age; }

    // Whether a row is too old for a pull of `step`.
    bool expired(std::uint32_t stamp, std::uint32_t step) const {
        return ttl_ != 0 && step > stamp && step - stamp > ttl_;
    }
    std::uint32_t ttl() const { return ttl_; }
    bool lfu() const { return lfu_; }

    // The stamp of a row that comes back from disk: with lfu at least that of the last one that went, or it
    // would be the next to go again.
    std::uint32_t returned(std::uint32_t bucket, Key key, std::uint32_t stamp) {
        if (!lfu_) return stamp;
        stamp = std::max(stamp, buckets_[bucket].age);
        expect(bucket, key, stamp);
        return stamp;
    }

    // The next row to go, taken off the list of candidates; none if its stamp would be greater than `most`.
    KeyIndex::Entry next(std::uint32_t bucket, const KeyIndex& index, std::uint32_t most = kMaxStamp);
    // With lru: next_used() spares rows that several steps used since they came, of those that came() names.
    void keep_used() { once_.resize(buckets_.size()); }
    // A row is there that `step` is the first to use.
    void came(std::uint32_t bucket, Key key, std::uint32_t step, const KeyIndex& index);
    // As next(), but rows that one step used since they came go before all others, the first that came first,
    // until they are an eighth of the bucket's. So rare rows, which are needed once and for long not again,
    // don't push out those that are used all the time ("segmented LRU").
    KeyIndex::Entry next_used(std::uint32_t bucket, const KeyIndex& index, std::uint32_t most);
    // Asks for the memory that the next `count` calls of next_used() will need: first for the lists, later
    // for what they name.
    void ask_for_lists(std::uint32_t bucket, std::size_t count) const;
    void ask_for_named(std::uint32_t bucket, std::size_t count, const KeyIndex& index) const;
    // The row that was given last for this bucket can't go: it is the next one again. age: before that.
    void stays(std::uint32_t bucket, KeyIndex::Entry entry, std::uint32_t age);
    std::uint32_t age(std::uint32_t bucket) const { return buckets_[bucket].age; }

    std::size_t held_bytes() const;
    // The candidates of a bucket that evicts, with `rows` rows.
    static std::size_t candidate_bytes(std::size_t rows);
    // Those that came, with keep_used().
    static std::size_t once_bytes(std::size_t rows);

  private:
    struct __attribute__((packed, aligned(4))) Candidate {  // 12 bytes: a table has many
        Key key;
        std::uint32_t stamp;

        bool operator<(const Candidate& other) const {
            return stamp != other.stamp ? stamp < other.stamp : key < other.key;
        }
    };
    struct Bucket {
        std::vector<Candidate> candidates;  // oldest last
        std::uint32_t newest = 0;           // the stamp of the first of them; 0 if there is none
        std::uint32_t age = 0;              // lfu: the stamp of the last row that went
    };

    struct Once {  // rows that came, with the steps that used them first; those before `first` are done with
        std::vector<Candidate> rows;
        std::size_t first = 0;
    };
    // Forgets rows that were used again, or are gone.
    static void forget_used(Once& of, std::uint32_t bucket, const KeyIndex& index);

    // The candidates are the oldest rows as of the last scan. All other rows are newer than each of them,
    // as long as rows that become, or come, as old as these are put on the list too.
    void expect(std::uint32_t bucket, Key key, std::uint32_t stamp) {
        if (stamp <= buckets_[bucket].newest) add_candidate(buckets_[bucket], {key, stamp});
    }
    static void add_candidate(Bucket& bucket, Candidate row);
    void scan(std::uint32_t bucket, const KeyIndex& index);

    bool lfu_;
    std::uint32_t ttl_;
    std::uint32_t newest_of_all_ = 0;  // no bucket's `newest` was ever greater
    std::vector<Bucket> buckets_;
    std::vector<Once> once_;  // none without keep_used()
    std::vector<Candidate> scratch_;
};

}  // namespace persia
