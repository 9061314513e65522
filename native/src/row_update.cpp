#include "persia/row_update.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace persia {
namespace {

constexpr std::uint64_t kWeightSalt = 0xa0761d6478bd642fu;
constexpr std::uint64_t kStateSalt = 0xe7037ed1a0b428dbu;

}  // namespace

RowUpdate::RowUpdate(const OptimizerChoice& choice, std::uint32_t dim, Storage weights, Storage state,
                     double value_bound, double clip_norm, std::uint64_t seed)
    : optimizer_(choice.optimizer),
      weight_decay_(choice.weight_decay),
      value_bound_(static_cast<float>(value_bound)),
      clip_norm_(clip_norm),
      dim_(dim),
      state_width_(persia::state_width(optimizer_, dim)),
      has_steps_(persia::has_steps(optimizer_)),
      weights_(weights),
      state_(state),
      plain_(weights == Storage::kFp32 && state == Storage::kFp32 && weight_decay_ == 0 &&
             value_bound_ == 0 && clip_norm == 0),
      seed_(seed),
      weights_room_(dim),
      state_room_(state_width_ + 1),
      clipped_room_(clip_norm != 0 ? dim : 0),
      gradient_room_(dim) {
    const auto check = [](const char* name, double value) {
        if (std::isfinite(value) && value >= 0) return;
        throw std::invalid_argument(std::string(name) + ": got " + std::to_string(value) +
                                    ", expected a finite number, 0 (none) or more");
    };
    check("value_bound", value_bound);
    check("clip_norm", clip_norm);
}

std::size_t RowUpdate::held_bytes() const {
    std::size_t floats = weights_room_.capacity() + state_room_.capacity() + clipped_room_.capacity() +
                         gradient_room_.capacity();
    if (const Adam* adam = std::get_if<Adam>(&optimizer_)) return floats * sizeof(float) + adam->held_bytes();
    return floats * sizeof(float);
}

void RowUpdate::init(const float* values, std::byte* weights, std::byte* state) {
    float* s = state_room_.data();
    std::visit([&](const auto& kind) { kind.init(s, dim_); }, optimizer_);
    write(values, s, 0, weights, state);
}

void RowUpdate::read(const std::byte* weights, const std::byte* state, float* w, float* s,
                     std::uint32_t* steps) const {
    load(weights_, weights, w, dim_);
    load(state_, state, s, state_width_);
    if (has_steps_) std::memcpy(steps, state + steps_offset(), sizeof *steps);
}

void RowUpdate::write(const float* w, const float* s, std::uint32_t steps, std::byte* weights,
                      std::byte* state) const {
    store_nearest(weights_, w, weights, dim_);
    store_nearest(state_, s, state, state_width_);
    if (has_steps_) std::memcpy(state + steps_offset(), &steps, sizeof steps);
}

void RowUpdate::unpack(const std::byte* weights, const std::byte* state) {
    load(weights_, weights, weights_room_.data(), dim_);
    load(state_, state, state_room_.data(), state_width_);
    if (has_steps_) std::memcpy(&state_room_[state_width_], state + steps_offset(), sizeof(float));
}

void RowUpdate::pack(Key key, std::uint32_t step, std::byte* weights, std::byte* state) {
    const std::uint64_t start = mix(key ^ seed_) + mix(step + kWeightSalt);
    store_stochastic(weights_, weights_room_.data(), weights, dim_, start ^ kWeightSalt);
    store_stochastic(state_, state_room_.data(), state, state_width_, start ^ kStateSalt);
    if (has_steps_) std::memcpy(state + steps_offset(), &state_room_[state_width_], sizeof(float));
}

const float* RowUpdate::clipped(const float* gradient) {
    double squares = 0;  // a float would overflow for gradients that are to be clipped most
    for (std::uint32_t d = 0; d < dim_; ++d) squares += double{gradient[d]} * double{gradient[d]};
    const double norm = std::sqrt(squares);
    if (norm <= clip_norm_) return gradient;
    for (std::uint32_t d = 0; d < dim_; ++d) {
        clipped_room_[d] = static_cast<float>(double{gradient[d]} * (clip_norm_ / norm));
    }
    return clipped_room_.data();
}

const float* RowUpdate::decayed(const float* w, const float* gradient) {
    float* __restrict sum = gradient_room_.data();
    for (std::uint32_t d = 0; d < dim_; ++d) sum[d] = gradient[d] + weight_decay_ * w[d];
    return sum;
}

}  // namespace persia
