// Loops over a row with a length that the compiler knows, for the dims that tables mostly have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace persia {

template <std::uint32_t kDim>  // 0: any
using FixedDim = std::integral_constant<std::uint32_t, kDim>;

template <std::uint32_t kDim>
constexpr std::uint32_t dim_or(std::uint32_t dim) {
    return kDim != 0 ? kDim : dim;
}

// run(FixedDim<dim>{}), for other dims run(FixedDim<0>{}).
template <class Run>
auto with_dim(std::size_t dim, const Run& run) {
    switch (dim) {
        case 8:
            return run(FixedDim<8>{});
        case 16:
            return run(FixedDim<16>{});
        case 32:
            return run(FixedDim<32>{});
        case 64:
            return run(FixedDim<64>{});
        case 128:
            return run(FixedDim<128>{});
        default:
            return run(FixedDim<0>{});
    }
}

}  // namespace persia
