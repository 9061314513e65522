// One optimizer update of a row as it is stored.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "persia/fixed_dim.h"
#include "persia/key.h"
#include "persia/optimizer.h"
#include "persia/storage.h"

namespace persia {

// How rows of a table are stored and updated. Not thread-safe: holds working memory.
class RowUpdate {
  public:
    // value_bound: weights are clipped to [-value_bound, value_bound] after each update; 0: they are not.
    // clip_norm: a longer gradient is first shortened to this length; 0: none is.
    // Throws std::invalid_argument unless both are finite and not negative.
    RowUpdate(const OptimizerChoice& choice, std::uint32_t dim, Storage weights, Storage state,
              double value_bound, double clip_norm, std::uint64_t seed);

    std::uint32_t state_width() const { return state_width_; }
    bool has_steps() const { return has_steps_; }
    std::size_t weight_bytes() const { return dim_ * bytes_of(weights_); }
    std::size_t state_bytes() const {  // the count of updates is never narrowed
        return (state_width_ * bytes_of(state_) + 3) / 4 * 4 + (has_steps_ ? 4 : 0);
    }
    Storage weights() const { return weights_; }
    bool wide() const { return weights_ == Storage::kFp32 && state_ == Storage::kFp32; }
    Optimizer& optimizer() { return optimizer_; }
    const Optimizer& optimizer() const { return optimizer_; }
    std::size_t held_bytes() const;

    // Writes the state of a new row and `values` [D] as its weights.
    void init(const float* values, std::byte* weights, std::byte* state);

    // `chosen` is optimizer() as its own type and kDim the dim or 0, so that a loop over rows chooses once.
    template <std::uint32_t kDim, class Chosen>
    void apply(Chosen& chosen, Key key, std::uint32_t step, std::byte* weights, std::byte* state,
               const float* gradient) {
        if (plain_) {
            chosen.apply(reinterpret_cast<float*>(weights), reinterpret_cast<float*>(state), gradient,
                         dim_or<kDim>(dim_));
        } else {
            apply_any(chosen, key, step, weights, state, gradient);
        }
    }

    // A row's weights [D], state [S] and count of updates, for checkpoints.
    void read(const std::byte* weights, const std::byte* state, float* w, float* s,
              std::uint32_t* steps) const;
    void write(const float* w, const float* s, std::uint32_t steps, std::byte* weights,
               std::byte* state) const;

  private:
    template <class Chosen>
    __attribute__((noinline)) void apply_any(Chosen& chosen, Key key, std::uint32_t step, std::byte* weights,
                                             std::byte* state, const float* gradient) {
        float* w = wide() ? reinterpret_cast<float*>(weights) : weights_room_.data();
        float* s = wide() ? reinterpret_cast<float*>(state) : state_room_.data();
        if (!wide()) unpack(weights, state);
        if (clip_norm_ != 0) gradient = clipped(gradient);
        if (weight_decay_ != 0) gradient = decayed(w, gradient);
        chosen.apply(w, s, gradient, dim_);
        if (value_bound_ != 0) {
            for (std::uint32_t d = 0; d < dim_; ++d) w[d] = std::clamp(w[d], -value_bound_, value_bound_);
        }
        if (!wide()) pack(key, step, weights, state);
    }

    void unpack(const std::byte* weights, const std::byte* state);
    void pack(Key key, std::uint32_t step, std::byte* weights, std::byte* state);
    const float* clipped(const float* gradient);
    const float* decayed(const float* w, const float* gradient);
    std::size_t steps_offset() const { return (state_width_ * bytes_of(state_) + 3) / 4 * 4; }

    Optimizer optimizer_;
    float weight_decay_;
    float value_bound_;
    double clip_norm_;
    std::uint32_t dim_;
    std::uint32_t state_width_;
    bool has_steps_;
    Storage weights_;
    Storage state_;
    bool plain_;  // stored as fp32, without decay, bound or clipping
    std::uint64_t seed_;
    std::vector<float> weights_room_;  // [D]
    std::vector<float> state_room_;    // [S] and the count of updates
    std::vector<float> clipped_room_;
    std::vector<float> gradient_room_;
};

}  // namespace persia
