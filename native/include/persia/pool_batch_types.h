// A batch as gather_pool's kernels for a GPU take it: plain structs of addresses and numbers.
//
// B samples, N ids, U unique rows of a group, D dim, L longest sequence. A jagged feature has no bags here:
// each id is for itself, like the id of a sample.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/codec.h"
#include "persia/pool.h"
#include "persia/quad.h"

namespace persia {

// Addresses are of the device (of the host for `pool_batch_*`). Mirrored by NumPy dtypes in
// trainer/pooling/cuda_kernel.py.
struct BatchFeature {
    const std::uint32_t* bags;  // [B+1] as in PoolFeature; null: one id per sample
    const std::byte* rows;      // [U] of its group, as they travel
    void* values;               // output or its gradient: [B, stride], or [B, L, D]; null: no gradient.
                                // jagged: [L, stride]
    bool* mask;                 // [B, L] of a sequence
    const float* weights;       // [its ids] what their rows are multiplied by; null: nothing
    std::uint32_t first;        // its first id in the batch
    std::uint32_t num_rows;     // U
    std::uint32_t dim;          // D
    std::uint32_t length;       // L, the longest sequence; jagged: the number of ids; 1 where they are pooled
    std::uint32_t stride;       // elements from one sample's values to the next; jagged: from one id's
    Pooling pooling;
    Wire wire;
    bool bf16;  // values are, else fp32
};
static_assert(sizeof(BatchFeature) == 64);

struct BatchGroup {
    std::byte* gradients;     // [U] as they travel
    Quad* partials;           // room for `num_partials(ids of the group)` sums of a row's quads
    std::uint32_t first_row;  // of all rows of the batch
    std::uint32_t num_rows;   // U
    std::uint32_t dim;
    std::uint32_t first_feature;  // features [first_feature, first_feature + num_features) have its rows
    std::uint32_t num_features;
    Wire wire;
};
static_assert(sizeof(BatchGroup) == 40);

// A part of a long row's uses, for one block.
struct LongPiece {
    std::uint32_t group, row, piece;
};
static_assert(sizeof(LongPiece) == 12);

// What went wrong in a batch: a kernel can't throw.
struct BatchFlags {
    std::uint32_t bad_index;  // an index was no row of its group; zeros were taken
    std::uint32_t nonfinite;  // some row's gradient is not finite
    std::uint32_t num_long;   // pieces in `long_pieces`
};

struct PoolBatch {
    const BatchFeature* features;  // by group, within it by their ids
    std::uint32_t num_features;
    const BatchGroup* groups;  // null in the forward
    std::uint32_t num_groups;
    std::uint32_t num_samples;
    const void* indices;               // [N]
    bool narrow;                       // std::uint16_t, else std::uint32_t
    std::uint32_t* samples;            // [N] the sample of each id of a bag; the forward writes it
    const std::uint32_t* row_offsets;  // [all rows + 1]
    const std::uint32_t* positions;    // [N] the ids that use each row, ascending
    const float* factor;               // gradients are multiplied by it; null: by 1
    LongPiece* long_pieces;            // room for N / kLongRow
    BatchFlags* flags;
};

}  // namespace persia
