// The rows of one table shard that were least needed, on disk: each with its stamp and optimizer's state, as
// stored.
//
// A file is cut into extents, each of which holds rows of one bucket. A bucket's rows are appended to its
// open extent, in memory; a full one is written whole before the next row comes, once, and never changed. A
// row that goes leaves a gap; an extent whose rows are all gone is free for others, one of which less than a
// third is left is sparse: its rows are appended anew at the end of a step (tidy()), a number of them that is
// bounded by those appended. So the file holds at most three times the rows' bytes, twice where its capacity
// allows no more, and about one and a half times what is appended is written.
//
// Rows may also lie in files that a checkpoint has (adopt()), in extents that are never written: they are
// read there, and go from there as from the store's own file. Where the capacity allows no more they go there
// from each of them that has a gap, so that a store has room for what it had before a start.
//
// Each record has a checksum, of its place too: a row is what was written there, or the call throws
// DiskError. In a checkpoint's file that is its bucket, of all servers' numbers, and its number among the
// bucket's rows there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "persia/cold_index.h"
#include "persia/extent_file.h"
#include "persia/key.h"
#include "persia/span.h"

namespace persia {

// Records in a file that a checkpoint has, by bucket.
struct SharedRows {
    std::string path;
    std::uint32_t number;              // by which for_each_marked() knows the file; 0: it doesn't
    Span<const std::uint64_t> chunks;  // where in the file each lies
    std::uint64_t chunk_rows;
    std::uint32_t first_bucket;         // of all servers' numbers
    Span<const std::uint64_t> offsets;  // [buckets + 1] number of the first record of each, and the end
    Span<const std::uint8_t> live;      // a bit a record, the lowest first: whether it is meant
};

class ColdStore {
  public:
    using Place = ColdIndex::Place;

    struct Row {  // points into what the store holds, until its next call
        Key key;
        std::uint32_t stamp;
        const std::byte* weights;
        const std::byte* state;
        Place place;
        bool before_mark;  // see mark()
    };
    struct Wanted {
        std::uint32_t bucket;
        std::uint32_t at;  // whoever asks knows it by this
        Key key;
    };
    struct Found {
        Wanted wanted;
        Row row;
    };

    // bucket_rows: that a bucket may have in memory. Throws DiskError if there can be no file in the folder.
    ColdStore(const std::string& folder, std::uint64_t capacity_bytes, std::uint32_t num_buckets,
              std::uint32_t bucket_rows, std::size_t weight_bytes, std::size_t state_bytes,
              std::uint32_t first_bucket = 0);

    // Whether the capacity has room for those records of the buckets here.
    bool has_room(const SharedRows& from) const;
    // Takes those of them that are meant, where they are; gives their number. Precondition: their keys aren't
    // here. Throws std::invalid_argument for what can't be such records, DiskError if they can't be read; the
    // store is of no use then.
    std::uint64_t adopt(const SharedRows& from, BucketOf bucket_of, std::uint32_t most_stamp);

    // Precondition: the key isn't here. Throws DiskFull, having changed nothing, if the capacity is used up
    // or nothing can be written; another call may find room.
    void append(std::uint32_t bucket, Key key, std::uint32_t stamp, const std::byte* weights,
                const std::byte* state);
    // The same in two calls: between them weights_of() and state_of() what the first gives must be filled.
    std::byte* begin_append(std::uint32_t bucket);
    void end_append(std::uint32_t bucket, Key key, std::uint32_t stamp);
    std::byte* weights_of(std::byte* record) const;
    std::byte* state_of(std::byte* record) const;
    // Whether many rows of a bucket after the other are appended, and the end of that; see ExtentFile.
    void gather(bool gathers) { file_.gather(gathers); }
    void write_held() { file_.write_held(); }
    // Makes room in the index for so many more rows of a bucket.
    void reserve(std::uint32_t bucket, std::size_t rows) { buckets_[bucket].index.reserve(rows); }
    // Those of the keys that are here, in their order.
    const std::vector<Found>& find(Span<const Wanted> wanted);
    // Whether a key may be here, without a look at the disk.
    bool may_have(std::uint32_t bucket, Key key) const;
    // Asks the system to begin to read the rows of those keys that are here; whether the drive must.
    bool ask_for(Span<const Wanted> wanted);
    // Asks for the memory that a look for a key needs, and append() of it as the n-th from now of its bucket.
    void prefetch(std::uint32_t bucket, Key key) const { buckets_[bucket].index.prefetch(key); }
    void prefetch_record(std::uint32_t bucket, std::size_t n) const {
        const Bucket& of = buckets_[bucket];
        if (of.open == kNone || extents_[of.open].used + n >= extent_rows_) return;
        prefetch_cold(of.room.data() + (extents_[of.open].used + n) * record_bytes_, record_bytes_);
    }
    void prefetch_extent(Place place) const { prefetch_cold_line(&extents_[place / extent_rows_]); }
    void erase(std::uint32_t bucket, Key key, Place place);
    // Moves the rows of sparse extents, a bounded number of them. Throws DiskFull as append() does.
    void tidy();

    // visit(Row) for the rows of a bucket in those of its extents that have a stamp of at least `least` and
    // one of at most `most`; it returns whether the row stays.
    template <class Visit>
    void for_each(std::uint32_t bucket, std::uint32_t least, std::uint32_t most, Visit&& visit) {
        const std::vector<std::uint32_t> extents = wanted_extents(bucket, least, most);
        for (const std::uint32_t extent : extents) {
            load(extent, extent_room_);
            const std::uint32_t used = extents_[extent].used;
            std::uint32_t oldest = UINT32_MAX;
            for (std::uint32_t i = 0; i < used; ++i) {
                const Row row = row_at(extent_room_.data() + i * record_bytes_, place_of(extent, i));
                if (!buckets_[bucket].index.contains(row.key, row.place)) continue;
                if (visit(row)) {
                    oldest = std::min(oldest, row.stamp);
                } else {
                    erase(bucket, row.key, row.place);
                    if (extents_[extent].live == 0) break;  // it is nobody's now: the others aren't known
                }
            }
            extents_[extent].oldest = oldest;
        }
    }
    // The rows of a bucket that were here at the mark, for a snapshot that has whole extents copied to a file
    // of its own, which later ones share: known(file, number) for those that were copied before, visit(Row,
    // copied) for the others, of which those with `copied` must be put into the file `into` in this order. A
    // number is that of a row among those of its bucket in its file.
    template <class Visit, class Known>
    void for_each_marked(std::uint32_t bucket, std::uint32_t into, Visit&& visit, Known&& known) {
        make_copies();
        buckets_[bucket].index.for_each([&](Place place) {
            const Copy& copy = copies_[place / extent_rows_];
            if (copy.file != 0) known(copy.file, copy.first + copied_before(place));
        });
        std::uint32_t number = 0;
        for (const std::uint32_t extent : marked_extents(bucket)) {
            load(extent, extent_room_);
            const std::uint32_t at_mark = extents_[extent].at_mark;
            const bool whole = !is_open(extent) && at_mark == extents_[extent].used;
            if (whole) copies_[extent] = {into, number};
            for (std::uint32_t i = 0; i < at_mark; ++i) {
                const Row row = row_at(extent_room_.data() + i * record_bytes_, place_of(extent, i));
                const bool here = buckets_[bucket].index.contains(row.key, row.place);
                if (whole) note_copied(row.place, here);
                if (here) visit(row, whole);
                number += here && whole;
            }
        }
    }
    // Writes the record of a row for a file that snapshots share: record_bytes() of it.
    void copy_record(const Row& row, std::uint32_t bucket, std::uint32_t number, std::byte* to) const;
    std::size_t record_bytes() const { return record_bytes_; }
    // Forgets what was copied to other files than these.
    void keep_copies(Span<const std::uint32_t> files);
    // Adds up, by file, the rows that are copied there and still here.
    void add_copied(std::map<std::uint32_t, std::uint64_t>& rows) const;
    // About how many rows of a bucket have a greater stamp: those of extents that have one.
    std::uint64_t rows_since(std::uint32_t bucket, std::uint32_t since) const;

    // From here on until release() rows know whether they were here at the mark, and none is moved.
    void mark();
    void release() { marked_ = false; }

    std::uint64_t size() const { return size_; }
    std::size_t rows(std::uint32_t bucket) const { return buckets_[bucket].index.size(); }
    std::uint64_t appended() const { return appended_; }  // rows, without those moved
    std::uint64_t file_bytes() const {                    // of extents in use
        return std::uint64_t{in_use_} * file_.extent_bytes() + adopted_bytes_;
    }
    std::size_t held_bytes() const;
    // Bytes of a row in the file, and of an extent.
    static std::size_t record_bytes(std::size_t weight_bytes, std::size_t state_bytes);
    static std::size_t extent_bytes(std::size_t record_bytes, std::uint32_t bucket_rows);
    // What a store that has used its capacity takes of memory: its index, and extents that rows are appended
    // to.
    static std::uint64_t memory_bytes(std::uint64_t capacity_bytes, std::uint32_t num_buckets,
                                      std::uint32_t bucket_rows, std::size_t weight_bytes,
                                      std::size_t state_bytes);

  private:
    static constexpr std::uint32_t kNone = UINT32_MAX;
    // A record: key, stamp, checksum, weights, state; all of it in words of 8 bytes.
    static constexpr std::size_t kStampAt = 8, kChecksumAt = 12, kHeader = 16;

    static std::size_t state_at(std::size_t weight_bytes) { return kHeader + (weight_bytes + 3) / 4 * 4; }
    template <class T>
    static T read_at(const std::byte* from) {
        T value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }

    struct Extent {
        std::uint32_t bucket, used, live;
        std::uint32_t at_mark;         // records that were there at the mark
        std::uint32_t oldest, newest;  // stamps
        bool sparse;                   // among those to be moved
        bool gapped;                   // among those to be moved where there is no room
    };
    struct Copy {  // of the rows of an extent that were there then; file 0: none
        std::uint32_t file = 0, first = 0;
    };
    struct Origin {                  // of an adopted extent
        std::uint32_t file = kNone;  // of shared_
        std::uint32_t first = 0;     // number of its first record, in the bucket
        std::uint64_t offset = 0;
    };
    struct SharedFile {
        std::unique_ptr<ExtentFile> file;  // none once no extent lies there
        std::uint32_t extents;
        std::vector<ExtentFile::Read> reads;
    };
    struct Bucket {
        ColdIndex index;
        std::vector<std::uint32_t> extents;
        std::uint32_t open = kNone;   // the extent that rows are appended to
        std::vector<std::byte> room;  // its records
    };

    Place place_of(std::uint32_t extent, std::uint32_t i) const { return Place{extent} * extent_rows_ + i; }
    std::uint64_t offset_of(Place place) const {
        const auto extent = static_cast<std::uint32_t>(place / extent_rows_);
        const std::uint64_t start =
            is_adopted(extent) ? origins_[extent].offset : std::uint64_t{extent} * file_.extent_bytes();
        return start + place % extent_rows_ * record_bytes_;
    }
    bool is_adopted(std::uint32_t extent) const {
        return extent < origins_.size() && origins_[extent].file != kNone;
    }
    const ExtentFile& file_of(std::uint32_t extent) const {
        return is_adopted(extent) ? *shared_[origins_[extent].file].file : file_;
    }
    // What a record's checksum begins with.
    std::uint64_t seed_of(Place place) const;
    std::uint64_t shared_seed(std::uint32_t bucket, std::uint32_t number) const;
    void adopt_some(std::uint32_t bucket, const Origin& origin, const std::byte* records, std::uint32_t count,
                    std::uint64_t at, const SharedRows& from, BucketOf bucket_of, std::uint32_t most_stamp);
    void check_records(const std::byte* records, std::uint64_t count, std::uint32_t bucket, std::uint64_t row,
                       std::uint64_t first, const std::string& path) const;
    void reserve_extents(std::size_t more, bool copied);
    void leave_file(std::uint32_t extent);  // of an adopted one that is free
    // Numbers of the records, in the file, of the buckets that are here.
    std::pair<std::uint64_t, std::uint64_t> range_of(const SharedRows& from) const;
    std::uint32_t take_extent(std::uint32_t bucket);
    void begin_reads();  // forgets those of a call that failed
    void add_read(Place place, std::byte* to);
    bool ask_for_shared();  // what add_read() has for files of a checkpoint
    void read_shared();
    bool is_open(std::uint32_t extent) const { return buckets_[extents_[extent].bucket].open == extent; }
    Row row_at(const std::byte* record, Place place) const;  // throws DiskError for a wrong checksum
    std::uint32_t checksum(const std::byte* record, std::uint64_t seed) const;
    std::byte* next_record(std::uint32_t bucket);  // of its open extent
    Place put(std::uint32_t bucket);               // what is there by now; gives it its checksum
    bool has_open(std::uint32_t bucket);           // with room; writes a full one
    void open_extent(std::uint32_t bucket);
    // Those of a bucket that for_each() looks at; the system begins to read them.
    std::vector<std::uint32_t> wanted_extents(std::uint32_t bucket, std::uint32_t least,
                                              std::uint32_t most) const;
    std::vector<std::uint32_t> marked_extents(std::uint32_t bucket) const;  // without a copy; begins to read
    void load(std::uint32_t extent, std::vector<std::byte>& into);
    std::size_t words_per_extent() const { return (extent_rows_ + 63) / 64; }
    void make_copies();  // room for those of all extents
    void note_copied(Place place, bool copied);
    std::uint32_t copied_before(Place place) const;  // rows of its extent
    void check_sparse(std::uint32_t extent);         // after rows of it went
    void note_sparse(std::uint32_t extent);
    bool is_gapped(std::uint32_t extent) const;
    bool move_gapped();  // as move_sparse(), of those that are worth it only where there is no room
    void make_room();    // for another extent
    void give_back_holes();
    template <class Visit>
    void each_match(Span<const Wanted> wanted, Visit&& visit) const;
    bool move_sparse();  // the rows of one extent; whether there was any

    struct Candidate {  // a row that may be that of a wanted key
        std::size_t wanted;
        Place place;
        const std::byte* record;
    };

    std::size_t weight_bytes_, state_bytes_, record_bytes_;
    std::uint64_t capacity_bytes_;
    ExtentFile file_;
    std::uint32_t extent_rows_;
    std::vector<Bucket> buckets_;
    std::vector<Extent> extents_;
    // By extent, once snapshots share files; and a bit for each of its records that was copied.
    std::vector<Copy> copies_;
    std::vector<std::uint64_t> copied_;
    std::vector<Origin> origins_;  // by extent, once some are adopted
    std::vector<SharedFile> shared_;
    std::uint64_t adopted_bytes_ = 0;
    std::uint32_t first_bucket_;                         // of all servers' numbers
    std::vector<std::uint32_t> free_, sparse_, gapped_;  // of the last some that are so no more
    std::uint32_t in_use_ = 0;                           // extents
    std::uint64_t size_ = 0, appended_ = 0, moved_ = 0;
    std::uint64_t tidied_ = 0;    // of appended_, at the last tidy()
    std::uint64_t outgrown_ = 0;  // bytes of indexes, since holes were given back
    bool marked_ = false;

    // Working memory, kept from call to call.
    std::vector<std::byte> extent_room_, move_room_, find_room_;
    std::vector<Candidate> candidates_;
    std::vector<Found> found_;
    std::vector<ExtentFile::Read> reads_;
};

}  // namespace persia
