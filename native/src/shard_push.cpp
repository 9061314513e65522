// Shard's pushes.
#include <algorithm>
#include <variant>

#include "persia/fixed_dim.h"
#include "persia/prefetch.h"
#include "persia/shard.h"
#include "persia/wire.h"

namespace persia {
namespace {

constexpr std::size_t kMostRows = 16;    // that are asked for at a time, see shard_pull.cpp
constexpr std::size_t kMostLines = 128;  // that these may have, to stay in the second cache
constexpr std::size_t kAhead = 12;       // rows, where they are asked for one by one

// Places in push_step's map from a slot to its sum.
std::size_t map_size(std::size_t rows) {
    std::size_t size = 16;
    while (size < 2 * rows) size *= 2;
    return size;
}

}  // namespace

// The i-th gradient as fp32, or null if it is of no use, which is counted. Inlined: a call per row would cost
// a tenth of a push.
template <std::uint32_t kDim>
__attribute__((always_inline)) inline const float* Shard::usable_gradient(const PushBatch& batch,
                                                                          std::size_t i, PushCounts& counts) {
    const std::uint32_t dim = dim_or<kDim>(config_.dim);
    if (batch.slots[i] == kNoSlot) {
        ++counts.unadmitted;
        return nullptr;
    }
    if (batch.epoch < removed_at_ && rows_.epoch(batch.slots[i]) > batch.epoch) {
        ++counts.evicted_in_flight;
        return nullptr;
    }
    const float* gradient;
    const auto [gradients, wire, _] = batch.gradients;
    if (wire == Wire::kFp32) {
        gradient = reinterpret_cast<const float*>(gradients) + i * dim;
    } else {
        decode_row(wire, gradients + i * wire_bytes(wire, dim), room_.data(), dim);
        gradient = room_.data();
    }
    if (!all_finite(gradient, dim)) {
        ++counts.nonfinite;
        return nullptr;
    }
    return gradient;
}

// row_at(k): the k-th of `n` rows.
template <std::uint32_t kDim, class Chosen, class RowAt>
PushCounts Shard::push_with(Chosen& chosen, const PushBatch& batch, std::uint32_t step, std::size_t n,
                            const RowAt& row_at) {
    struct Place {
        std::byte* weights;
        std::byte* state;
    };
    Place places[2][kMostRows];
    const std::uint32_t* const slots = batch.slots.data();
    const bool epochs = batch.epoch < removed_at_;
    const std::size_t weight_lines = rows_.weight_lines();
    const std::size_t state_lines = update_.state_bytes() != 0 ? rows_.state_lines() : 0;
    const std::size_t size = std::clamp<std::size_t>(kMostLines / (weight_lines + state_lines), 2, kMostRows);
    const auto ask_for_rows = [&](std::size_t begin, Place* to) {
        const std::size_t end = std::min(n, begin + size);
        for (std::size_t k = begin; k < end; ++k, ++to) {
            const std::uint32_t slot = slots[row_at(k)];
            if (slot == kNoSlot) continue;
            *to = {rows_.weights(slot), rows_.state(slot)};
            prefetch_cold_lines(to->weights, weight_lines);
            prefetch_cold_lines(to->state, state_lines);
            if (epochs) prefetch_cold_line(&rows_.epoch(slot));
        }
    };
    PushCounts counts;
    ask_for_rows(0, places[0]);
    for (std::size_t begin = 0, block = 0; begin < n; begin += size, ++block) {
        ask_for_rows(begin + size, places[(block + 1) % 2]);
        const Place* at = places[block % 2];
        const std::size_t end = std::min(n, begin + size);
        for (std::size_t k = begin; k < end; ++k, ++at) {
            const std::size_t i = row_at(k);
            const float* gradient = usable_gradient<kDim>(batch, i, counts);
            if (gradient == nullptr) continue;
            update_.apply<kDim>(chosen, batch.keys[i], step, at->weights, at->state, gradient);
            ++counts.applied;
        }
    }
    return counts;
}

PushCounts Shard::push(const PushBatch& batch, std::uint32_t step, PushPart part) {
    if (snapshot_.active()) keep_before_push(batch);
    if (changes_.noted()) note_pushed(batch);
    const std::size_t n = batch.keys.size();
    std::size_t num_chosen = 0;
    if (part != PushPart::kAll) {
        rest_.resize(n + 1);
        for (std::size_t i = 0; i < n; ++i) {  // without a branch that depends on the row
            rest_[num_chosen] = static_cast<std::uint32_t>(i);
            num_chosen += is_marked(batch.slots[i]) == (part == PushPart::kMarked);
        }
    }
    const PushCounts counts = std::visit(
        [&](auto& chosen) {
            return with_dim(config_.dim, [&](auto fixed) {
                constexpr std::uint32_t kDim = decltype(fixed)::value;
                if (part == PushPart::kAll) {
                    return push_with<kDim>(chosen, batch, step, n, [](std::size_t k) { return k; });
                }
                const std::uint32_t* const rows = rest_.data();
                return push_with<kDim>(chosen, batch, step, num_chosen,
                                       [rows](std::size_t k) { return std::size_t{rows[k]}; });
            });
        },
        update_.optimizer());
    if (part != PushPart::kMarked) marked_.clear();
    return counts;
}

void Shard::add_to_sums(const PushBatch& batch, PushPart part, PushCounts& counts) {
    const std::uint32_t dim = config_.dim;
    const std::size_t mask = merged_map_.size() - 1;
    const std::size_t n = batch.keys.size();
    for (std::size_t i = 0; i < n; ++i) {
        if (batch.epoch < removed_at_ && i + kAhead < n && batch.slots[i + kAhead] != kNoSlot) {
            prefetch_cold_line(&rows_.epoch(batch.slots[i + kAhead]));
        }
        const std::uint32_t slot = batch.slots[i];
        if (part != PushPart::kAll && is_marked(slot) != (part == PushPart::kMarked)) continue;
        const float* gradient = usable_gradient<0>(batch, i, counts);
        if (gradient == nullptr) continue;
        std::size_t at = mix(slot) & mask;
        while (merged_map_[at] != 0 && merged_[merged_map_[at] - 1].slot != slot) at = (at + 1) & mask;
        if (merged_map_[at] == 0) {
            merged_.push_back({batch.keys[i], slot, 1});
            merged_map_[at] = static_cast<std::uint32_t>(merged_.size());
            sums_.insert(sums_.end(), gradient, gradient + dim);
            continue;
        }
        ++merged_[merged_map_[at] - 1].num_batches;
        float* __restrict sum = sums_.data() + (merged_map_[at] - 1) * std::size_t{dim};
        for (std::uint32_t d = 0; d < dim; ++d) sum[d] += gradient[d];
    }
}

template <class Chosen>
void Shard::apply_sums(Chosen& chosen, std::uint32_t step, PushCounts& counts) {
    const std::uint32_t dim = config_.dim;
    for (std::size_t i = 0; i < merged_.size(); ++i) {
        if (i + kAhead < merged_.size()) {
            prefetch_cold_lines(rows_.weights(merged_[i + kAhead].slot), rows_.weight_lines());
            prefetch_cold_lines(rows_.state(merged_[i + kAhead].slot), rows_.state_lines());
        }
        const auto& [key, slot, num_batches] = merged_[i];
        const float* sum = sums_.data() + i * dim;
        if (!all_finite(sum, dim)) {
            counts.nonfinite += num_batches;
            continue;
        }
        update_.apply<0>(chosen, key, step, rows_.weights(slot), rows_.state(slot), sum);
        counts.applied += num_batches;
    }
}

PushCounts Shard::push_step(const std::vector<PushBatch>& batches, std::uint32_t step, PushPart part) {
    std::size_t total = 0;
    for (const PushBatch& batch : batches) {
        total += batch.keys.size();
        if (snapshot_.active()) keep_before_push(batch);
        if (changes_.noted()) note_pushed(batch);
    }
    merged_map_.assign(map_size(total), 0);
    merged_.clear();
    sums_.clear();
    PushCounts counts;
    for (const PushBatch& batch : batches) add_to_sums(batch, part, counts);
    std::visit([&](auto& chosen) { apply_sums(chosen, step, counts); }, update_.optimizer());
    if (part != PushPart::kMarked) marked_.clear();
    return counts;
}

std::uint64_t Shard::step_bytes(std::uint32_t dim, std::uint64_t rows) {
    return rows == 0 ? 0
                     : rows * (sizeof(Merged) + dim * sizeof(float)) + map_size(rows) * sizeof(std::uint32_t);
}

}  // namespace persia
