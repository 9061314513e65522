// ColdStore's rows in files that checkpoints have.
#include <algorithm>
#include <cstring>
#include <future>
#include <stdexcept>
#include <string>

#include "persia/cold_store.h"

namespace persia {
namespace {

constexpr std::size_t kBytesAtOnce = 4 << 20, kAskedAhead = 4;  // reads, and how many of them
constexpr std::size_t kAhead = 8;  // keys whose index lines are asked for before they are needed
constexpr std::uint64_t kShared = std::uint64_t{1} << 63;  // no place in the store's own file is so large

bool is_live(Span<const std::uint8_t> live, std::uint64_t at) { return (live[at / 8] >> at % 8 & 1) != 0; }

std::uint64_t count_live(Span<const std::uint8_t> live, std::uint64_t begin, std::uint64_t end) {
    std::uint64_t count = 0;
    for (; begin < end && begin % 8 != 0; ++begin) count += is_live(live, begin);
    for (; begin + 8 <= end; begin += 8) {
        count += static_cast<unsigned>(__builtin_popcount(live[begin / 8]));
    }
    for (; begin < end; ++begin) count += is_live(live, begin);
    return count;
}

void check(const SharedRows& from) {
    const std::size_t n = from.offsets.size();
    bool good = n != 0 && from.chunk_rows != 0 && from.offsets[0] == 0;
    for (std::size_t i = 1; good && i < n; ++i) good = from.offsets[i - 1] <= from.offsets[i];
    const std::uint64_t end = good ? from.offsets[n - 1] : 0;
    good =
        good && end <= from.live.size() * 8 && (end == 0 || (end - 1) / from.chunk_rows < from.chunks.size());
    if (!good) throw std::invalid_argument(from.path + ": its buckets, mask and chunks don't fit together");
}

}  // namespace

std::uint64_t ColdStore::shared_seed(std::uint32_t bucket, std::uint32_t number) const {
    return kShared | std::uint64_t{first_bucket_ + bucket} << 32 | number;
}

std::uint64_t ColdStore::seed_of(Place place) const {
    const auto extent = static_cast<std::uint32_t>(place / extent_rows_);
    if (!is_adopted(extent)) return place;
    const auto i = static_cast<std::uint32_t>(place % extent_rows_);
    return shared_seed(extents_[extent].bucket, origins_[extent].first + i);
}

void ColdStore::copy_record(const Row& row, std::uint32_t bucket, std::uint32_t number, std::byte* to) const {
    std::memcpy(to, row.weights - kHeader, record_bytes_);
    const std::uint32_t sum = checksum(to, shared_seed(bucket, number));
    std::memcpy(to + kChecksumAt, &sum, sizeof sum);
}

void ColdStore::begin_reads() {
    reads_.clear();
    for (SharedFile& each : shared_) each.reads.clear();
}

void ColdStore::add_read(Place place, std::byte* to) {
    const auto extent = static_cast<std::uint32_t>(place / extent_rows_);
    std::vector<ExtentFile::Read>& reads = is_adopted(extent) ? shared_[origins_[extent].file].reads : reads_;
    reads.push_back({offset_of(place), to, record_bytes_});
}

bool ColdStore::ask_for_shared() {
    bool asked = false;
    for (SharedFile& each : shared_) {
        if (!each.reads.empty()) asked = each.file->ask_for(each.reads) || asked;
    }
    return asked;
}

void ColdStore::read_shared() {
    for (SharedFile& each : shared_) {
        if (!each.reads.empty()) each.file->read(each.reads);
    }
}

std::pair<std::uint64_t, std::uint64_t> ColdStore::range_of(const SharedRows& from) const {
    const std::uint64_t first = from.first_bucket, end = first + from.offsets.size() - 1;
    const std::uint64_t low = std::clamp<std::uint64_t>(first_bucket_, first, end);
    const std::uint64_t high = std::clamp<std::uint64_t>(first_bucket_ + buckets_.size(), first, end);
    return {from.offsets[low - first], from.offsets[high - first]};
}

bool ColdStore::has_room(const SharedRows& from) const {
    check(from);
    const auto [begin, end] = range_of(from);
    return file_bytes() + (end - begin) * record_bytes_ <= capacity_bytes_;
}

std::uint64_t ColdStore::adopt(const SharedRows& from, BucketOf bucket_of, std::uint32_t most_stamp) {
    check(from);
    const auto range = range_of(from);
    std::uint64_t at = range.first;
    const std::uint64_t end = range.second;
    if (at == end) return 0;
    const auto number = static_cast<std::uint32_t>(shared_.size());
    shared_.push_back({std::make_unique<ExtentFile>(from.path), 0, {}});
    const std::uint64_t before = size_;
    const std::uint64_t most = std::max<std::uint64_t>(1, kBytesAtOnce / record_bytes_);
    const auto place = [&](std::uint64_t row) {
        return from.chunks[row / from.chunk_rows] + row % from.chunk_rows * record_bytes_;
    };
    const auto until = [&](std::uint64_t row) {  // of records that lie side by side
        return std::min({end, row + most, (row / from.chunk_rows + 1) * from.chunk_rows});
    };
    const auto bucket_of_record = [&](std::size_t& i, std::uint64_t row) {  // i: of the file's, the last one
        while (from.offsets[i + 1] <= row) ++i;
        return from.first_bucket + static_cast<std::uint32_t>(i) - first_bucket_;
    };
    const std::uint64_t rows = end - at;
    reserve_extents(rows / extent_rows_ + from.offsets.size() + rows / most + from.chunks.size(),
                    from.number != 0);
    std::vector<std::byte> room, next;
    std::uint64_t asked = at;
    std::size_t read_bucket = 0;
    // Records of one bucket, from the row on, that have room in an extent.
    const auto run_of = [&](std::size_t bucket, std::uint64_t row, std::uint64_t stop) {
        return std::min<std::uint64_t>({stop - row, from.offsets[bucket + 1] - row, extent_rows_});
    };
    const auto read = [&](std::uint64_t row) {  // and checks: on a thread of its own
        const ExtentFile& file = *shared_[number].file;
        for (; asked < end && asked < row + kAskedAhead * most; asked = until(asked)) {
            file.ask_for(place(asked), (until(asked) - asked) * record_bytes_);
        }
        const std::uint64_t stop = until(row);
        next.resize((stop - row) * record_bytes_);
        std::vector<ExtentFile::Read> one{{place(row), next.data(), next.size()}};
        file.read(one);
        for (const std::byte* records = next.data(); row < stop;) {
            const std::uint32_t bucket = bucket_of_record(read_bucket, row);
            const std::uint64_t count = run_of(read_bucket, row, stop);
            if (count_live(from.live, row, row + count) != 0)
                check_records(records, count, bucket, row, row - from.offsets[read_bucket], from.path);
            records += count * record_bytes_;
            row += count;
        }
    };
    std::future<void> reading = std::async(read, at);
    for (std::size_t i = 0; at < end;) {
        const std::uint64_t stop = until(at);
        reading.get();
        room.swap(next);
        if (stop < end) reading = std::async(read, stop);
        for (const std::byte* records = room.data(); at < stop;) {
            const std::uint32_t bucket = bucket_of_record(i, at);
            const auto first = static_cast<std::uint32_t>(at - from.offsets[i]);
            if (first == 0) {
                Bucket& of = buckets_[bucket];
                outgrown_ += of.index.held_bytes();
                of.index.reserve(count_live(from.live, at, from.offsets[i + 1]));
                of.extents.reserve(of.extents.size() + (from.offsets[i + 1] - at) / extent_rows_ + 1);
            }
            const auto count = static_cast<std::uint32_t>(run_of(i, at, stop));
            adopt_some(bucket, {number, first, place(at)}, records, count, at, from, bucket_of, most_stamp);
            records += count * record_bytes_;
            at += count;
        }
    }
    if (shared_[number].extents == 0) shared_[number].file.reset();
    return size_ - before;
}

// Throws DiskError for the first of so many records of a bucket that isn't as it was written. row: its number
// in the file, first: in its bucket there.
void ColdStore::check_records(const std::byte* records, std::uint64_t count, std::uint32_t bucket,
                              std::uint64_t row, std::uint64_t first, const std::string& path) const {
    for (std::uint64_t i = 0; i < count; ++i, records += record_bytes_) {
        const std::uint64_t seed = shared_seed(bucket, static_cast<std::uint32_t>(first + i));
        if (read_at<std::uint32_t>(records + kChecksumAt) == checksum(records, seed)) continue;
        throw DiskError("the disk tier in " + path + ": record " + std::to_string(row + i) +
                        " is not as it was written: its checksum differs");
    }
}

// Memory for so many more extents, at most, at once: what grows leaves holes in the heap.
void ColdStore::reserve_extents(std::size_t more, bool copied) {
    const std::size_t most = extents_.size() + more;
    extents_.reserve(most);
    origins_.reserve(most);
    if (!copied) return;
    copies_.reserve(most);
    copied_.reserve(most * words_per_extent());
}

// Records of one bucket that lie side by side, are as they were written and have room in an extent. at:
// number of the first in the file.
void ColdStore::adopt_some(std::uint32_t bucket, const Origin& origin, const std::byte* records,
                           std::uint32_t count, std::uint64_t at, const SharedRows& from, BucketOf bucket_of,
                           std::uint32_t most_stamp) {
    const std::uint64_t live = count_live(from.live, at, at + count);
    if (live == 0) return;
    const std::uint32_t number = take_extent(bucket);
    if (origins_.size() <= number) origins_.resize(std::max<std::size_t>(number + 1, extents_.size()));
    origins_[number] = origin;
    ++shared_[origin.file].extents;
    adopted_bytes_ += count * record_bytes_;
    Extent& extent = extents_[number];
    extent.used = count;
    extent.live = static_cast<std::uint32_t>(live);
    ColdIndex& index = buckets_[bucket].index;
    for (std::uint32_t i = 0; i < count; ++i) {
        if (i + kAhead < count) index.prefetch(read_at<Key>(records + (i + kAhead) * record_bytes_));
        const std::byte* const record = records + i * record_bytes_;
        if (!is_live(from.live, at + i)) continue;
        const auto key = read_at<Key>(record);
        const auto stamp = read_at<std::uint32_t>(record + kStampAt);
        if (bucket_of(key) != first_bucket_ + bucket || stamp > most_stamp) {
            throw std::invalid_argument(from.path + ": record " + std::to_string(at + i) +
                                        " is of another bucket, or of a step that can't be");
        }
        extent.oldest = std::min(extent.oldest, stamp);
        extent.newest = std::max(extent.newest, stamp);
        index.insert(key, place_of(number, i));
        ++size_;
    }
    if (from.number != 0) {
        make_copies();
        copies_[number] = {from.number, origin.first};
        std::fill_n(copied_.begin() + static_cast<std::ptrdiff_t>(number * words_per_extent()),
                    words_per_extent(), ~std::uint64_t{0});
    }
    check_sparse(number);
}

void ColdStore::leave_file(std::uint32_t extent) {
    SharedFile& file = shared_[origins_[extent].file];
    adopted_bytes_ -= extents_[extent].used * record_bytes_;
    origins_[extent] = {};
    if (--file.extents == 0) file.file.reset();
}

}  // namespace persia
