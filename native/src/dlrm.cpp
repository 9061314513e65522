#include "persia/dlrm.h"

#include <algorithm>
#include <atomic>

#include "interacting.h"
#include "panels.h"
#include "perceptron.h"
#include "perceptron_bf16.h"
#include "persia/aligned_array.h"

namespace persia {
namespace {

constexpr std::size_t kPart = 512;  // samples over which gradients of parameters are summed
constexpr std::size_t kGroup = 2;   // panels that the forward computes at a time

AlignedArray<float> zeros(std::size_t n) {
    AlignedArray<float> array(n);
    std::fill(array.data(), array.data() + n, 0.0f);
    return array;
}

// Rows that a panel needs for whatever lies between two layers.
std::size_t widest(const Dlrm& dlrm) {
    std::size_t most = std::max(dlrm.shape.width(), dlrm.shape.num_vectors * dlrm.shape.dim);
    for (const auto* layers : {&dlrm.bottom, &dlrm.top})
        for (const DenseLayer& layer : *layers) most = std::max({most, layer.num_inputs, layer.num_outputs});
    return whole_panels(most) * kPanel;
}

// use(part, begin, end) for each part of the samples, by the threads of the team: each takes the next part
// when it is through with one, so that one that begins late holds up nobody.
template <typename MakeUse>
void for_parts(std::size_t num_samples, ThreadTeam& team, const MakeUse& make_use) {
    const std::size_t parts = (num_samples + kPart - 1) / kPart;
    std::atomic<std::size_t> next{0};
    const auto work = [&](unsigned) {
        std::size_t part = next.fetch_add(1);
        if (part >= parts) return;
        for (auto use = make_use(); part < parts; part = next.fetch_add(1))
            use(part, part * kPart, std::min(num_samples, (part + 1) * kPart));
    };
    if (team.size() == 1 || parts == 1)
        work(0);
    else
        team.run(work);
}

// Reads the vectors of `count` samples into a panel [V, D]; vector 0 is `first`, if `bottom` makes it.
void read_vectors(const Dlrm& dlrm, std::size_t begin, std::size_t count, const float* first, float* panel) {
    const std::size_t width = dlrm.num_given() * dlrm.shape.dim;
    if (!dlrm.bottom.empty()) panel = std::copy_n(first, dlrm.shape.dim * kPanel, panel);
    to_panel(dlrm.vectors.data() + begin * width, count, width, panel);
}

}  // namespace

std::size_t Dlrm::kept_width() const {
    std::size_t width = 0;
    for (const DenseLayer& layer : bottom) width += layer.num_outputs;
    for (std::size_t l = 0; l + 1 < top.size(); ++l) width += top[l].num_outputs;
    return width;
}

std::size_t Dlrm::kept_size() const { return whole_panels(num_samples) * kPanel * kept_width(); }

namespace {

// The layers of one way as their products take them.
template <typename Layer>
struct Layers {
    std::vector<Layer> bottom, top;
};

// run(layers) of the network, with the products that it asks for.
template <typename Run>
void with_layers(const Dlrm& dlrm, bool forward, const Run& run) {
#ifdef PERSIA_BF16
    if (dlrm.bf16) {
        Layers<Bf16Layer> layers;
        for (const DenseLayer& layer : dlrm.bottom) layers.bottom.emplace_back(layer, forward);
        for (const DenseLayer& layer : dlrm.top) layers.top.emplace_back(layer, forward);
        return run(layers);
    }
#else
    static_cast<void>(forward);
#endif
    run(Layers<DenseLayer>{dlrm.bottom, dlrm.top});
}

template <typename Layer>
void forward(const Dlrm& dlrm, const Layers<Layer>& layers, Span<float> kept, Span<float> out,
             ThreadTeam& team) {
    const std::size_t room = widest(dlrm) * kPanel, kept_stride = dlrm.kept_width() * kPanel;
    const std::size_t num_outputs = dlrm.top.back().num_outputs;
    for_parts(dlrm.num_samples, team, [&] {
        return [&, vectors = AlignedArray<float>(kGroup * room),
                interaction = AlignedArray<float>(kGroup * room),
                scratch = AlignedArray<float>(scratch_size(layers.top.front(), widest(dlrm)))](
                   std::size_t, std::size_t begin, std::size_t end) mutable {
            for (; begin < end; begin += kGroup * kPanel) {
                const std::size_t panels = std::min(kGroup, whole_panels(end - begin));
                const auto first = [&](std::size_t p) { return begin + p * kPanel; };
                const auto count = [&](std::size_t p) { return std::min(kPanel, end - first(p)); };
                Panels<float> to{kept.data() + begin / kPanel * kept_stride, kept_stride};
                Panels<const float> inputs{interaction.data(), room};
                const auto go_through = [&](const Layer& layer, bool relu) {
                    forward_layer(layer, panels, inputs, relu, to, scratch.data());
                    inputs = {to.data, to.stride};
                    to.data += layer.num_outputs * kPanel;
                };
                if (!dlrm.bottom.empty()) {
                    const std::size_t width = dlrm.bottom.front().num_inputs;
                    for (std::size_t p = 0; p < panels; ++p)
                        to_panel(dlrm.dense.data() + first(p) * width, count(p), width,
                                 interaction.data() + p * room);
                }
                for (const Layer& layer : layers.bottom) go_through(layer, true);
                for (std::size_t p = 0; p < panels; ++p) {
                    read_vectors(dlrm, first(p), count(p), inputs[p], vectors.data() + p * room);
                    interact(dlrm.shape, vectors.data() + p * room, interaction.data() + p * room);
                }
                inputs = {interaction.data(), room};
                for (std::size_t l = 0; l + 1 < layers.top.size(); ++l) go_through(layers.top[l], true);
                to = {vectors.data(), room};
                go_through(layers.top.back(), false);
                for (std::size_t p = 0; p < panels; ++p)
                    from_panel(inputs[p], count(p), num_outputs, out.data() + first(p) * num_outputs,
                               num_outputs);
            }
        };
    });
}

// The backward of one thread, block by block.
template <typename Layer>
class Backward {
  public:
    Backward(const Dlrm& dlrm, const Layers<Layer>& layers, Span<const float> kept,
             Span<const float> gradient, const DlrmGradients& to)
        : dlrm_(dlrm),
          layers_(layers),
          kept_(kept.data()),
          gradient_(gradient.data()),
          to_(to),
          kept_stride_(dlrm.kept_width() * kPanel),
          vectors_stride_(dlrm.shape.num_vectors * dlrm.shape.dim * kPanel),
          inputs_stride_(widest(dlrm) * kPanel),
          vectors_(kBlock / kPanel * vectors_stride_),
          inputs_(kBlock / kPanel * inputs_stride_),
          slopes_(zeros(kBlock / kPanel * inputs_stride_)),
          next_(zeros(kBlock / kPanel * inputs_stride_)),
          scratch_(zeros(scratch_size(layers.top.front(), widest(dlrm)))) {}

    // Adds to the sums of all layers' gradients, those of `bottom` first.
    void run(std::size_t begin, std::size_t count, float* sums) {
        begin_ = begin, count_ = count;
        const std::size_t num_outputs = dlrm_.top.back().num_outputs;
        const float* const kept = kept_ + begin / kPanel * kept_stride_;
        const float* const first = kept + (bottom_width() - dlrm_.shape.dim) * kPanel;
        each_panel([&](std::size_t p, std::size_t at, std::size_t n) {
            to_panel(gradient_ + at * num_outputs, n, num_outputs, slopes_.data() + p * inputs_stride_);
            float* const vectors = vectors_.data() + p * vectors_stride_;
            read_vectors(dlrm_, at, n, first + p * kept_stride_, vectors);
            interact(dlrm_.shape, vectors, inputs_.data() + p * inputs_stride_);
        });
        float* top_sums = sums;
        for (const DenseLayer& layer : dlrm_.bottom) top_sums += sums_size(layer);
        back(layers_.top, kept + bottom_width() * kPanel, true, top_sums);
        if (dlrm_.bottom.empty() && to_.vectors.empty()) return;
        each_panel([&](std::size_t p, std::size_t at, std::size_t n) {
            const std::size_t own = dlrm_.bottom.empty() ? 0 : dlrm_.shape.dim;
            const std::size_t width = dlrm_.num_given() * dlrm_.shape.dim;
            float* const made = next_.data() + p * inputs_stride_;
            interact_backward(dlrm_.shape, vectors_.data() + p * vectors_stride_,
                              slopes_.data() + p * inputs_stride_, made);
            if (!to_.vectors.empty())
                from_panel(made + own * kPanel, n, width, to_.vectors.data() + at * width, width);
            const float* const ahead = first + p * kept_stride_;
            for (std::size_t i = 0; i < own * kPanel; ++i) made[i] = ahead[i] <= 0 ? 0 : made[i];
        });
        if (dlrm_.bottom.empty()) return;
        std::swap(slopes_, next_);
        const std::size_t width = dlrm_.bottom.front().num_inputs;
        each_panel([&](std::size_t p, std::size_t at, std::size_t n) {
            to_panel(dlrm_.dense.data() + at * width, n, width, inputs_.data() + p * inputs_stride_);
        });
        back(layers_.bottom, kept, !to_.dense.empty(), sums);
        if (to_.dense.empty()) return;
        each_panel([&](std::size_t p, std::size_t at, std::size_t n) {
            from_panel(slopes_.data() + p * inputs_stride_, n, width, to_.dense.data() + at * width, width);
        });
    }

  private:
    std::size_t bottom_width() const {
        std::size_t width = 0;
        for (const DenseLayer& layer : dlrm_.bottom) width += layer.num_outputs;
        return width;
    }

    // use(panel of the block, its first sample, how many it has)
    template <typename Use>
    void each_panel(const Use& use) {
        for (std::size_t at = 0; at < count_; at += kPanel)
            use(at / kPanel, begin_ + at, std::min(kPanel, count_ - at));
    }

    // From the last layer's `slopes_` to the gradient of the first one's inputs, if it is wanted, in their
    // place. The first one's inputs are `inputs_`; kept: the outputs of the others.
    void back(const std::vector<Layer>& layers, const float* kept, bool wanted, float* sums) {
        std::size_t at = 0;
        for (const DenseLayer& layer : layers) sums += sums_size(layer), at += layer.num_outputs;
        at -= layers.back().num_outputs;
        for (std::size_t l = layers.size(); l-- > 0;) {
            const Layer& layer = layers[l];
            sums -= sums_size(layer);
            at -= l ? layers[l - 1].num_outputs : 0;
            const Panels<const float> inputs = l ? Panels<const float>{kept + at * kPanel, kept_stride_}
                                                 : Panels<const float>{inputs_.data(), inputs_stride_};
            const Panels<const float> slopes{slopes_.data(), inputs_stride_};
            backward_weights(layer, count_, inputs, slopes, sums, scratch_.data());
            if (l == 0 && !wanted) return;
            backward_inputs(layer, whole_panels(count_), slopes, l ? inputs : Panels<const float>{},
                            {next_.data(), inputs_stride_}, scratch_.data());
            std::swap(slopes_, next_);
        }
    }

    const Dlrm& dlrm_;
    const Layers<Layer>& layers_;
    const float *kept_, *gradient_;
    const DlrmGradients& to_;
    std::size_t kept_stride_, vectors_stride_, inputs_stride_;
    AlignedArray<float> vectors_, inputs_, slopes_, next_, scratch_;
    std::size_t begin_ = 0, count_ = 0;
};

template <typename Layer>
void backward(const Dlrm& dlrm, const Layers<Layer>& given, Span<const float> kept,
              Span<const float> gradient, const DlrmGradients& to, ThreadTeam& team) {
    std::size_t size = 0;
    for (const auto* layers : {&dlrm.bottom, &dlrm.top})
        for (const DenseLayer& layer : *layers) size += sums_size(layer);
    const std::size_t parts = (dlrm.num_samples + kPart - 1) / kPart;
    AlignedArray<float> sums(parts * size);
    for_parts(dlrm.num_samples, team, [&] {
        return [&, of_thread = Backward<Layer>(dlrm, given, kept, gradient, to)](
                   std::size_t part, std::size_t begin, std::size_t end) mutable {
            std::fill_n(sums.data() + part * size, size, 0.0f);
            for (; begin < end; begin += kBlock)
                of_thread.run(begin, std::min(kBlock, end - begin), sums.data() + part * size);
        };
    });
    AlignedArray<float> total = zeros(size);
    for (std::size_t part = 0; part < parts; ++part) add(total.data(), sums.data() + part * size, size);
    const float* at = total.data();
    const auto write = [&](const std::vector<DenseLayer>& layers,
                           const std::vector<DlrmGradients::Layer>& gradients) {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            write_sums(layers[l], at, gradients[l].weight, gradients[l].bias);
            at += sums_size(layers[l]);
        }
    };
    write(dlrm.bottom, to.bottom);
    write(dlrm.top, to.top);
}

}  // namespace

void dlrm_forward(const Dlrm& dlrm, Span<float> kept, Span<float> out, ThreadTeam& team) {
    with_layers(dlrm, true, [&](const auto& layers) { forward(dlrm, layers, kept, out, team); });
}

void dlrm_backward(const Dlrm& dlrm, Span<const float> kept, Span<const float> gradient,
                   const DlrmGradients& to, ThreadTeam& team) {
    with_layers(dlrm, false, [&](const auto& layers) { backward(dlrm, layers, kept, gradient, to, team); });
}

}  // namespace persia
