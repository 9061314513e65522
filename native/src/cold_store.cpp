#include "persia/cold_store.h"

#include <cstring>

namespace persia {
namespace {

constexpr std::size_t kExtentBytes = 64 << 10, kPage = 4096;
constexpr std::size_t kLeastExtentRows = 4, kUsualExtentRows = 16;
constexpr std::uint32_t kShareOfBucket = 16;  // open extents take so small a part of what rows take in memory
constexpr std::size_t kAhead = 8;             // keys whose memory is asked for before they are looked at
constexpr double kIndexBytes = 10.2;          // of a row at most, see cold_index.cpp

std::size_t aligned(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

std::size_t ColdStore::record_bytes(std::size_t weight_bytes, std::size_t state_bytes) {
    return aligned(state_at(weight_bytes) + state_bytes, 8);
}

std::size_t ColdStore::extent_bytes(std::size_t record_bytes, std::uint32_t bucket_rows) {
    const std::size_t most = std::max(kExtentBytes, kLeastExtentRows * record_bytes);
    const std::size_t least = std::min(kUsualExtentRows * record_bytes, most);
    return aligned(std::clamp(bucket_rows * record_bytes / kShareOfBucket, least, most), kPage);
}

std::uint64_t ColdStore::memory_bytes(std::uint64_t capacity_bytes, std::uint32_t num_buckets,
                                      std::uint32_t bucket_rows, std::size_t weight_bytes,
                                      std::size_t state_bytes) {
    const std::size_t record = record_bytes(weight_bytes, state_bytes);
    const std::size_t extent = extent_bytes(record, bucket_rows);
    const double extents = static_cast<double>(capacity_bytes) / static_cast<double>(extent);
    const double rows = extents * static_cast<double>(extent / record);
    const std::size_t copied = sizeof(Copy) + (extent / record + 63) / 64 * sizeof(std::uint64_t);
    const double places =
        rows * kIndexBytes + extents * (sizeof(Extent) + sizeof(Origin) + sizeof(std::uint32_t) + copied);
    return static_cast<std::uint64_t>(places) + std::uint64_t{num_buckets} * (sizeof(Bucket) + extent);
}

ColdStore::ColdStore(const std::string& folder, std::uint64_t capacity_bytes, std::uint32_t num_buckets,
                     std::uint32_t bucket_rows, std::size_t weight_bytes, std::size_t state_bytes,
                     std::uint32_t first_bucket)
    : weight_bytes_(weight_bytes),
      state_bytes_(state_bytes),
      record_bytes_(record_bytes(weight_bytes, state_bytes)),
      capacity_bytes_(capacity_bytes),
      file_(folder, extent_bytes(record_bytes_, bucket_rows)),
      extent_rows_(static_cast<std::uint32_t>(file_.extent_bytes() / record_bytes_)),
      buckets_(num_buckets),
      first_bucket_(first_bucket) {}

// Four sums side by side, as each step of one waits for the step before.
std::uint32_t ColdStore::checksum(const std::byte* record, std::uint64_t seed) const {
    constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15u;
    const auto add = [](std::uint64_t& sum, std::uint64_t word) {
        sum = (sum ^ word) * kFactor;
        sum ^= sum >> 32;
    };
    std::uint64_t sums[4] = {mix(seed), read_at<Key>(record), read_at<std::uint32_t>(record + kStampAt),
                             kFactor};
    std::size_t at = kHeader;
    for (; at + 32 <= record_bytes_; at += 32) {
        for (unsigned i = 0; i < 4; ++i) add(sums[i], read_at<std::uint64_t>(record + at + 8 * i));
    }
    for (unsigned i = 0; at < record_bytes_; at += 8) add(sums[i++], read_at<std::uint64_t>(record + at));
    for (unsigned i = 1; i < 4; ++i) sums[0] += sums[i] * (kFactor + 2 * i);
    return static_cast<std::uint32_t>(mix(sums[0]));
}

ColdStore::Row ColdStore::row_at(const std::byte* record, Place place) const {
    if (read_at<std::uint32_t>(record + kChecksumAt) != checksum(record, seed_of(place))) {
        throw DiskError("the disk tier in " +
                        file_of(static_cast<std::uint32_t>(place / extent_rows_)).folder() + ": row " +
                        std::to_string(place) + " is not as it was written: its checksum differs");
    }
    const Extent& extent = extents_[place / extent_rows_];
    return {read_at<Key>(record),
            read_at<std::uint32_t>(record + kStampAt),
            record + kHeader,
            record + state_at(weight_bytes_),
            place,
            marked_ && place % extent_rows_ < extent.at_mark};
}

std::uint32_t ColdStore::take_extent(std::uint32_t bucket) {
    std::uint32_t extent;
    if (free_.empty()) {
        extent = static_cast<std::uint32_t>(extents_.size());
        extents_.emplace_back();
    } else {
        extent = free_.back();
        free_.pop_back();
    }
    extents_[extent] = {bucket, 0, 0, 0, UINT32_MAX, 0, false, extents_[extent].gapped};
    if (extent < copies_.size()) copies_[extent] = {};
    buckets_[bucket].extents.push_back(extent);
    return extent;
}

void ColdStore::open_extent(std::uint32_t bucket) {
    const std::uint32_t extent = take_extent(bucket);
    ++in_use_;
    Bucket& of = buckets_[bucket];
    of.room.resize(file_.extent_bytes());
    of.open = extent;
}

std::byte* ColdStore::next_record(std::uint32_t bucket) {
    if (!has_open(bucket)) open_extent(bucket);
    Bucket& of = buckets_[bucket];
    return of.room.data() + extents_[of.open].used * record_bytes_;
}

ColdStore::Place ColdStore::put(std::uint32_t bucket) {
    Bucket& of = buckets_[bucket];
    Extent& extent = extents_[of.open];
    const Place place = place_of(of.open, extent.used);
    std::byte* const record = of.room.data() + extent.used * record_bytes_;
    const std::uint32_t sum = checksum(record, place);
    std::memcpy(record + kChecksumAt, &sum, sizeof sum);
    const auto stamp = read_at<std::uint32_t>(record + kStampAt);
    extent.oldest = std::min(extent.oldest, stamp);
    extent.newest = std::max(extent.newest, stamp);
    ++extent.used;
    ++extent.live;
    return place;
}

bool ColdStore::has_open(std::uint32_t bucket) {
    Bucket& of = buckets_[bucket];
    if (of.open == kNone) return false;
    const std::uint32_t number = of.open;
    if (extents_[number].used < extent_rows_) return true;
    if (extents_[number].live != 0) file_.write(number, of.room.data());
    of.open = kNone;
    check_sparse(number);
    return false;
}

std::byte* ColdStore::weights_of(std::byte* record) const { return record + kHeader; }
std::byte* ColdStore::state_of(std::byte* record) const { return record + state_at(weight_bytes_); }

std::byte* ColdStore::begin_append(std::uint32_t bucket) {
    if (!has_open(bucket)) make_room();
    return next_record(bucket);
}

void ColdStore::end_append(std::uint32_t bucket, Key key, std::uint32_t stamp) {
    std::byte* const record = next_record(bucket);
    std::memcpy(record, &key, sizeof key);
    std::memcpy(record + kStampAt, &stamp, sizeof stamp);
    ColdIndex& index = buckets_[bucket].index;
    const std::size_t before = index.held_bytes();
    index.insert(key, put(bucket));
    if (index.held_bytes() != before) outgrown_ += before;
    ++size_;
    ++appended_;
}

void ColdStore::append(std::uint32_t bucket, Key key, std::uint32_t stamp, const std::byte* weights,
                       const std::byte* state) {
    std::byte* const record = begin_append(bucket);
    std::memcpy(weights_of(record), weights, weight_bytes_);
    if (state_bytes_ != 0) std::memcpy(state_of(record), state, state_bytes_);
    end_append(bucket, key, stamp);
}

bool ColdStore::may_have(std::uint32_t bucket, Key key) const {
    bool may = false;
    buckets_[bucket].index.for_each_match(key, [&](Place) { may = true; });
    return may;
}

bool ColdStore::ask_for(Span<const Wanted> wanted) {
    begin_reads();
    each_match(wanted, [&](std::size_t i, Place place) {
        if (place / extent_rows_ != buckets_[wanted[i].bucket].open) add_read(place, nullptr);
    });
    const bool asked = file_.ask_for(reads_);
    return ask_for_shared() || asked;
}

// visit(number, place) for each row that may be that of a wanted key.
template <class Visit>
void ColdStore::each_match(Span<const Wanted> wanted, Visit&& visit) const {
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (i + kAhead < wanted.size()) {
            buckets_[wanted[i + kAhead].bucket].index.prefetch(wanted[i + kAhead].key);
        }
        buckets_[wanted[i].bucket].index.for_each_match(wanted[i].key, [&](Place place) { visit(i, place); });
    }
}

const std::vector<ColdStore::Found>& ColdStore::find(Span<const Wanted> wanted) {
    candidates_.clear();
    begin_reads();
    found_.clear();
    each_match(wanted, [&](std::size_t i, Place place) { candidates_.push_back({i, place, nullptr}); });
    find_room_.resize(candidates_.size() * record_bytes_);
    std::byte* room = find_room_.data();
    for (Candidate& each : candidates_) {
        const Bucket& of = buckets_[wanted[each.wanted].bucket];
        if (each.place / extent_rows_ == of.open) {
            each.record = of.room.data() + each.place % extent_rows_ * record_bytes_;
            continue;
        }
        add_read(each.place, room);
        each.record = room;
        room += record_bytes_;
    }
    file_.read(reads_);
    read_shared();
    for (const Candidate& each : candidates_) {
        const Row row = row_at(each.record, each.place);
        if (row.key == wanted[each.wanted].key) found_.push_back({wanted[each.wanted], row});
    }
    return found_;
}

void ColdStore::erase(std::uint32_t bucket, Key key, Place place) {
    buckets_[bucket].index.erase(key, place);
    --size_;
    const auto extent = static_cast<std::uint32_t>(place / extent_rows_);
    --extents_[extent].live;
    if (!is_open(extent)) check_sparse(extent);
}

std::vector<std::uint32_t> ColdStore::wanted_extents(std::uint32_t bucket, std::uint32_t least,
                                                     std::uint32_t most) const {
    std::vector<std::uint32_t> wanted;
    for (const std::uint32_t number : buckets_[bucket].extents) {
        const Extent& extent = extents_[number];
        if (extent.newest < least || extent.oldest > most) continue;
        wanted.push_back(number);
        if (!is_open(number)) {
            file_of(number).ask_for(offset_of(place_of(number, 0)), extent.used * record_bytes_);
        }
    }
    return wanted;
}

std::vector<std::uint32_t> ColdStore::marked_extents(std::uint32_t bucket) const {
    std::vector<std::uint32_t> marked;
    for (const std::uint32_t number : buckets_[bucket].extents) {
        if (extents_[number].at_mark == 0 || copies_[number].file != 0) continue;
        marked.push_back(number);
        if (!is_open(number)) {
            file_of(number).ask_for(offset_of(place_of(number, 0)), extents_[number].used * record_bytes_);
        }
    }
    return marked;
}

void ColdStore::load(std::uint32_t extent, std::vector<std::byte>& into) {
    into.resize(file_.extent_bytes());
    if (is_open(extent)) {
        const std::vector<std::byte>& room = buckets_[extents_[extent].bucket].room;
        std::copy_n(room.begin(), extents_[extent].used * record_bytes_, into.begin());
        return;
    }
    reads_ = {{offset_of(place_of(extent, 0)), into.data(), extents_[extent].used * record_bytes_}};
    file_of(extent).read(reads_);
}

std::uint64_t ColdStore::rows_since(std::uint32_t bucket, std::uint32_t since) const {
    std::uint64_t rows = 0;
    for (const std::uint32_t extent : buckets_[bucket].extents) {
        if (extents_[extent].newest > since) rows += extents_[extent].live;
    }
    return rows;
}

void ColdStore::mark() {
    for (Extent& extent : extents_) extent.at_mark = extent.used;
    marked_ = true;
}

std::size_t ColdStore::held_bytes() const {
    const auto held = [](const auto& values) { return values.capacity() * sizeof(values[0]); };
    std::size_t bytes = sizeof *this + file_.held_bytes() + held(buckets_) + held(extents_) + held(copies_) +
                        held(copied_) + held(origins_) + held(shared_) + held(free_) + held(sparse_) +
                        held(gapped_) + held(extent_room_) + held(move_room_) + held(find_room_) +
                        held(candidates_) + held(found_) + held(reads_);
    for (const Bucket& bucket : buckets_) {
        bytes += bucket.index.held_bytes() + held(bucket.extents) + held(bucket.room);
    }
    return bytes;
}

}  // namespace persia
