// Linear layers as in perceptron.h, with both factors of each product rounded to bf16 (to nearest, ties to
// even; what is below the smallest normal number is zero) and sums in float, for processors with AVX512_BF16.
//
// Its one instruction adds the products of two pairs to each of 16 sums, so a depth of n is n / 2 pairs: a
// float here is the room of a pair, the first in its low half. The other of an odd last one is zero.
#pragma once

#include <cstddef>

#include "panels.h"
#include "perceptron.h"
#include "persia/aligned_array.h"
#include "persia/wide.h"

#ifdef PERSIA_BF16
#include <immintrin.h>

namespace persia {
namespace {

static_assert(kPanel == 16);                // lanes of a vector
constexpr std::size_t kPairs = kPanel / 2;  // of a panel's samples
constexpr std::size_t pairs_of(std::size_t n) { return (n + 1) / 2; }

// to [K] pairs (a, b) of rows a and b [K], or, without b, of (a, 0); step floats from one to the next.
PERSIA_BF16 inline void pair_rows(const float* a, const float* b, std::size_t n, float* to,
                                  std::size_t step) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places =  // of words: each of the lower half, then the one 16 above it
        _mm512_add_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(0x10001)), _mm512_set1_epi32(16 << 16));
    const __m512i offsets = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(step)));
    for (std::size_t i = 0; i < n; i += 16) {
        const auto there = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
        const __m512 low = _mm512_maskz_loadu_ps(there, a + i);
        const __m512 high = b == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there, b + i);
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        const __m512i pairs = _mm512_permutexvar_epi16(places, both);
        if (step == 1)
            _mm512_mask_storeu_epi32(to + i, there, pairs);
        else
            _mm512_mask_i32scatter_epi32(to + i * step, there, offsets, pairs, 4);
    }
}

// to [K / 2] pairs of neighbours of a row [K].
PERSIA_BF16 inline void pair_neighbours(const float* from, std::size_t n, float* to) {
    for (std::size_t i = 0; i < n; i += 16) {
        const auto there = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
        const auto narrow = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + i));
        const auto pairs = static_cast<__mmask8>(n - i < 16 ? (1u << pairs_of(n - i)) - 1 : 0xffu);
        _mm256_mask_storeu_epi32(to + i / 2, pairs, narrow);
    }
}

// to [rows / 2][kPanel] pairs of rows of a panel, that lie `kPanel` apart.
PERSIA_BF16 inline void pair_panel(const float* from, std::size_t rows, float* to) {
    for (std::size_t r = 0; r < rows; r += 2, from += 2 * kPanel, to += kPanel)
        pair_rows(from, r + 1 < rows ? from + kPanel : nullptr, kPanel, to, 1);
}

// Adds the products of left [kRows] pairs, `row` floats apart, at each of `depth` places with those of right
// [kPanels][depth][16]. Twelve sums hide each other's latency; of two panels each pair on the left is loaded
// once.
template <std::size_t kRows, std::size_t kPanels>
PERSIA_BF16 inline __attribute__((always_inline)) void add_pairs(__m512 (&sums)[kRows][kPanels],
                                                                 const float* left, std::size_t row,
                                                                 std::size_t depth,
                                                                 Panels<const float> right) {
    for (std::size_t at = 0; at < depth; ++at) {
        __m512bh factors[kPanels];
#pragma GCC unroll 2
        for (std::size_t p = 0; p < kPanels; ++p)
            factors[p] = (__m512bh)_mm512_loadu_si512(right[p] + at * kPanel);
#pragma GCC unroll 12
        for (std::size_t r = 0; r < kRows; ++r) {
            const auto factor = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(left[r * row + at]));
#pragma GCC unroll 2
            for (std::size_t p = 0; p < kPanels; ++p)
                sums[r][p] = _mm512_dpbf16_ps(sums[r][p], factors[p], factor);
        }
    }
}

// run(Size<1 or 2>(), first) for all panels.
template <typename Run>
void for_panels(std::size_t panels, const Run& run) {
    std::size_t p = 0;
    for (; p + 2 <= panels; p += 2) run(Size<2>(), p);
    if (p < panels) run(Size<1>(), p);
}

// A layer with its weights in pairs: those of neighbouring inputs for the forward, [N][K / 2], or of
// neighbouring outputs for the backward, [K][N / 2].
struct Bf16Layer : DenseLayer {
    Bf16Layer(const DenseLayer& layer, bool forward)
        : DenseLayer(layer),
          pairs(forward ? num_outputs * pairs_of(num_inputs) : num_inputs * pairs_of(num_outputs)) {
        if (forward)
            for (std::size_t n = 0; n < num_outputs; ++n)
                pair_neighbours(&weight[n * num_inputs], num_inputs, pairs.data() + n * pairs_of(num_inputs));
        else
            for (std::size_t n = 0; n < num_outputs; n += 2)
                pair_rows(&weight[n * num_inputs],
                          n + 1 < num_outputs ? &weight[(n + 1) * num_inputs] : nullptr, num_inputs,
                          pairs.data() + n / 2, pairs_of(num_outputs));
    }

    AlignedArray<float> pairs;
};

std::size_t scratch_size(const Bf16Layer&, std::size_t widest) {
    return kBlock / 2 * (whole_panels(widest) + 2) * kPanel;
}

template <std::size_t kRows, std::size_t kPanels>
PERSIA_BF16 void forward_tile(const Bf16Layer& layer, std::size_t n, Panels<const float> inputs, bool relu,
                              Panels<float> out) {
    const std::size_t depth = pairs_of(layer.num_inputs);
    __m512 sums[kRows][kPanels];
#pragma GCC unroll 12
    for (std::size_t r = 0; r < kRows; ++r)
        for (__m512& sum : sums[r]) sum = _mm512_set1_ps(layer.bias[n + r]);
    add_pairs(sums, layer.pairs.data() + n * depth, depth, depth, inputs);
#pragma GCC unroll 12
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (std::size_t p = 0; p < kPanels; ++p) {
            const __mmask16 below = _mm512_cmp_ps_mask(sums[r][p], _mm512_setzero_ps(), _CMP_LT_OQ);
            if (relu) sums[r][p] = _mm512_mask_mov_ps(sums[r][p], below, _mm512_setzero_ps());  // NaN stays
            _mm512_storeu_ps(out[p] + (n + r) * kPanel, sums[r][p]);
        }
    }
}

void forward_layer(const Bf16Layer& layer, std::size_t panels, Panels<const float> inputs, bool relu,
                   Panels<float> out, float* scratch) {
    const Panels<float> pairs{scratch, pairs_of(layer.num_inputs) * kPanel};
    for (std::size_t p = 0; p < panels; ++p) pair_panel(inputs[p], layer.num_inputs, pairs[p]);
    for_panels(panels, [&](auto at_once, std::size_t p) {
        for_tiles(layer.num_outputs, [&](auto rows, std::size_t n) {
            forward_tile<rows(), at_once()>(layer, n, {pairs[p], pairs.stride}, relu, {out[p], out.stride});
        });
    });
}

template <std::size_t kRows, std::size_t kPanels>
PERSIA_BF16 void backward_inputs_tile(const Bf16Layer& layer, std::size_t k, Panels<const float> slopes,
                                      Panels<const float> made, Panels<float> gradient) {
    const std::size_t depth = pairs_of(layer.num_outputs);
    __m512 sums[kRows][kPanels] = {};
    add_pairs(sums, layer.pairs.data() + k * depth, depth, depth, slopes);
#pragma GCC unroll 12
    for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (std::size_t p = 0; p < kPanels; ++p) {
            if (made.data != nullptr) {
                const __m512 ahead = _mm512_loadu_ps(made[p] + (k + r) * kPanel);
                const __mmask16 hidden = _mm512_cmp_ps_mask(ahead, _mm512_setzero_ps(), _CMP_LE_OQ);
                sums[r][p] = _mm512_mask_mov_ps(sums[r][p], hidden, _mm512_setzero_ps());
            }
            _mm512_storeu_ps(gradient[p] + (k + r) * kPanel, sums[r][p]);
        }
    }
}

void backward_inputs(const Bf16Layer& layer, std::size_t panels, Panels<const float> slopes,
                     Panels<const float> made, Panels<float> gradient, float* scratch) {
    const Panels<float> pairs{scratch, pairs_of(layer.num_outputs) * kPanel};
    for (std::size_t p = 0; p < panels; ++p) pair_panel(slopes[p], layer.num_outputs, pairs[p]);
    for_panels(panels, [&](auto at_once, std::size_t p) {
        const Panels<const float> ahead{made.data == nullptr ? nullptr : made[p], made.stride};
        for_tiles(layer.num_inputs, [&](auto rows, std::size_t k) {
            backward_inputs_tile<rows(), at_once()>(layer, k, {pairs[p], pairs.stride}, ahead,
                                                    {gradient[p], gradient.stride});
        });
    });
}

// Adds to sums [kPanels][K][16 outputs], here of kRows inputs, from a block's inputs [panels][K][kPairs] and
// turned [kPanels][panels][kPairs][16 outputs].
template <std::size_t kRows, std::size_t kPanels>
PERSIA_BF16 void backward_weights_tile(std::size_t num_inputs, std::size_t count, const float* inputs,
                                       Panels<const float> turned, Panels<float> to) {
    __m512 sums[kRows][kPanels];
#pragma GCC unroll 12
    for (std::size_t r = 0; r < kRows; ++r)
        for (std::size_t p = 0; p < kPanels; ++p) sums[r][p] = _mm512_loadu_ps(to[p] + r * kPanel);
    for (std::size_t begin = 0; begin < count; begin += kPanel)
        add_pairs(sums, inputs + begin / 2 * num_inputs, kPairs, pairs_of(std::min(kPanel, count - begin)),
                  {turned.data + begin / 2 * kPanel, turned.stride});
#pragma GCC unroll 12
    for (std::size_t r = 0; r < kRows; ++r)
        for (std::size_t p = 0; p < kPanels; ++p) _mm512_storeu_ps(to[p] + r * kPanel, sums[r][p]);
}

// biases [16] += the slopes turned [panels][kPairs][16 outputs].
PERSIA_BF16 inline void add_biases(const float* turned, std::size_t count, float* biases) {
    const auto ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    __m512 sum = _mm512_loadu_ps(biases);
    for (std::size_t at = 0; at < pairs_of(count); ++at)
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(turned + at * kPanel), ones);
    _mm512_storeu_ps(biases, sum);
}

void backward_weights(const Bf16Layer& layer, std::size_t count, Panels<const float> inputs,
                      Panels<const float> slopes, float* sums, float* scratch) {
    constexpr std::size_t kTurned = kBlock / 2 * kPanel;  // [panels][kPairs][16 outputs]
    float* const pairs = scratch + 2 * kTurned;           // [panels][K][kPairs]
    const std::size_t stride = kPanel * layer.num_inputs;
    float* const biases = sums + whole_panels(layer.num_outputs) * stride;
    for (std::size_t begin = 0; begin < count; begin += kPanel)
        pair_neighbours(inputs[begin / kPanel], stride, pairs + begin / kPanel * stride / 2);
    for_panels(whole_panels(layer.num_outputs), [&](auto at_once, std::size_t panel) {
        const Panels<float> turned{scratch, kTurned};
        for (std::size_t p = 0; p < at_once(); ++p) {
            const std::size_t n = (panel + p) * kPanel;
            for (std::size_t begin = 0; begin < count; begin += kPanel) {
                float narrow[kPanel * kPairs];
                pair_neighbours(slopes[begin / kPanel] + n * kPanel, kPanel * kPanel, narrow);
                transpose(narrow, kPairs, kPanel, kPairs, turned[p] + begin / 2 * kPanel, kPanel);
            }
            add_biases(turned[p], count, biases + n);
        }
        for_tiles(layer.num_inputs, [&](auto rows, std::size_t k) {
            backward_weights_tile<rows(), at_once()>(layer.num_inputs, count, pairs + k * kPairs,
                                                     {turned.data, turned.stride},
                                                     {sums + panel * stride + k * kPanel, stride});
        });
    });
}

}  // namespace
}  // namespace persia
#endif
