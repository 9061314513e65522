// Rows of an array in any order: how a window of samples is shuffled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace persia {

// out[i] = source[rows[i]] for each i below `num_out`, rows of `row_bytes`. False, with what came before it
// written, at the first row that is not below `num_rows`.
bool gather(const std::uint8_t* source, std::size_t num_rows, std::size_t row_bytes, const std::int64_t* rows,
            std::size_t num_out, std::uint8_t* out);

}  // namespace persia
