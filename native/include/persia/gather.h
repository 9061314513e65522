// Rows of an array in any order: how a window of samples is shuffled.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/span.h"

namespace persia {

// out[i] = source[rows[i]] for rows of `row_bytes`, at least 1: `out` has one for each of `rows`. False, with
// what came before it written, at the first row that `source` doesn't have.
bool gather(Span<const std::uint8_t> source, std::size_t row_bytes, Span<const std::int64_t> rows,
            Span<std::uint8_t> out);

}  // namespace persia
