// Rows as a service keeps them: weights alone, as fp32, fp16, bf16, or int8 with a scale for each row.
//
// An int8 row is its scale as bf16, then D bytes: element d is scale * byte d. The scale is the row's largest
// magnitude over 127, rounded up to a bf16, so nothing is cut off and no element is further than half a scale
// away from what it was; where 127 scales are more than the largest float, that is what the element is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "persia/storage.h"

namespace persia {

enum class RowFormat : std::uint8_t { kFp32, kFp16, kBf16, kInt8 };

// "fp32", "fp16", "bf16" or "int8"; throws std::invalid_argument for another name.
RowFormat row_format_of(const std::string& name);

std::size_t bytes_of(RowFormat format, std::size_t dim);

// n rows of a table, each at its own place, as they are stored; room: [dim].
void encode_served(RowFormat format, Storage storage, const std::byte* const* rows, std::size_t n,
                   std::size_t dim, float* room, std::byte* out);

// One row of `dim` elements, to and from `bytes_of` bytes, which may lie anywhere for int8 and at a multiple
// of the element's size for the others. What is beyond a format's largest finite number becomes that number.
// Infinity and NaN stay, but for int8, where infinity becomes the largest number and NaN any finite one.
void encode_row(RowFormat format, const float* row, std::byte* out, std::size_t dim);
void decode_row(RowFormat format, const std::byte* in, float* row, std::size_t dim);

}  // namespace persia
