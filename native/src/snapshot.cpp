#include "persia/snapshot.h"

#include <cstring>
#include <stdexcept>

namespace persia {

void Snapshot::begin(std::uint32_t num_buckets, std::uint32_t end_slot) {
    if (active_) throw std::logic_error("a snapshot is under way: end it before the next begins");
    settled_.assign((std::size_t{end_slot} + 63) / 64, 0);
    copied_.assign(num_buckets, false);
    kept_.clear();
    kept_.resize(num_buckets);
    kept_bytes_ = 0;
    end_slot_ = end_slot;
    active_ = true;
}

void Snapshot::end() {
    active_ = false;
    settled_ = {};
    copied_ = {};
    kept_ = {};
    kept_bytes_ = 0;
}

void Snapshot::keep(std::uint32_t bucket, Key key, std::uint32_t stamp, std::uint32_t slot,
                    const std::byte* weights, const std::byte* state) {
    std::vector<std::byte>& records = kept_[bucket];
    const std::size_t at = records.size(), before = records.capacity();
    records.resize(at + record_bytes_);
    kept_bytes_ += records.capacity() - before;
    std::memcpy(&records[at], &key, sizeof key);
    std::memcpy(&records[at + 8], &stamp, sizeof stamp);
    std::memcpy(&records[at + 16], weights, weight_bytes_);
    if (state_bytes_ != 0) std::memcpy(&records[at + 16 + weight_bytes_], state, state_bytes_);
    settle(slot);
}

Snapshot::Kept Snapshot::read(const std::byte* record) const {
    Kept kept{};
    std::memcpy(&kept.key, record, sizeof kept.key);
    std::memcpy(&kept.stamp, record + 8, sizeof kept.stamp);
    kept.weights = record + 16;
    kept.state = record + 16 + weight_bytes_;
    return kept;
}

void Snapshot::release(std::uint32_t bucket) {
    copied_[bucket] = true;
    kept_bytes_ -= kept_[bucket].capacity();
    kept_[bucket] = {};
}

std::size_t Snapshot::held_bytes() const {
    return settled_.capacity() * sizeof(settled_[0]) + copied_.capacity() / 8 +
           kept_.capacity() * sizeof(kept_[0]) + kept_bytes_;
}

}  // namespace persia
