#include "persia/pool_batch.h"

#include <random>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

std::uint32_t random_count(std::mt19937& random) {
    static constexpr std::uint32_t kEdges[] = {0, 1, 64, 65, 511, 512, 513, 768, 1023, 1024, 1025};
    if (random() % 2) return kEdges[random() % std::size(kEdges)];
    return random() % (random() % 4 ? 700 : 20000);
}

// The rows of two groups: only the second is looked at, whose uses begin anywhere.
void pieces_and_partial_sums_have_room_and_do_not_meet(std::mt19937& random, std::uint32_t dim) {
    std::vector<std::uint32_t> offsets{0, random_count(random)};
    const std::uint32_t num_rows = 1 + random() % 30;
    for (std::uint32_t u = 0; u < num_rows; ++u) offsets.push_back(offsets.back() + random_count(random));
    const std::uint32_t num_ids = offsets.back() - offsets[1];
    PoolBatch batch{};
    batch.row_offsets = offsets.data();
    std::vector<Quad> partials(num_partials(num_ids) * quads_of(dim));
    std::vector<bool> used(partials.size());
    BatchGroup group{};
    group.partials = partials.data();
    group.first_row = 1;
    group.num_rows = num_rows;
    group.dim = dim;
    std::uint64_t all_pieces = 0;
    for (std::uint32_t u = 0; u < num_rows; ++u) {
        const RowUses uses = uses_of(batch, group, u);
        const std::uint32_t count = uses.end - uses.begin, pieces = num_pieces(group, uses);
        CHECK((pieces > 0) == (count > kLongRow));
        all_pieces += pieces;
        std::uint32_t at = uses.begin;
        for (std::uint32_t piece = 0; piece < pieces; ++piece) {
            const RowUses part = uses_of_piece(uses, piece);
            CHECK(part.begin == at && part.end > at && part.end - at <= kPiece);
            at = part.end;
            for (std::uint32_t q = 0; pieces > 1 && q < quads_of(dim); ++q) {
                const auto place = partial_of(batch, group, uses, piece, q) - partials.data();
                CHECK(place >= 0 && static_cast<std::size_t>(place) < partials.size());
                CHECK(!used[static_cast<std::size_t>(place)]);
                used[static_cast<std::size_t>(place)] = true;
            }
        }
        CHECK(pieces == 0 || at == uses.end);
    }
    CHECK(all_pieces <= num_ids / kLongRow);
}

void uses_near_the_largest_number_are_no_problem() {
    const std::vector<std::uint32_t> offsets{0, 0xfffffffeu};
    PoolBatch batch{};
    batch.row_offsets = offsets.data();
    BatchGroup group{};
    group.num_rows = 1;
    group.dim = 4;
    const RowUses uses = uses_of(batch, group, 0);
    CHECK(num_pieces(group, uses) == 1u << 23);
    CHECK(uses_of_piece(uses, (1u << 23) - 1).end == 0xfffffffeu);
}

}  // namespace

int main() {
    std::mt19937 random(1);
    for (int i = 0; i < 2000; ++i)
        for (const std::uint32_t dim : {1u, 6u, 64u})
            pieces_and_partial_sums_have_room_and_do_not_meet(random, dim);
    uses_near_the_largest_number_are_no_problem();
}
