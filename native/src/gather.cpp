#include "persia/gather.h"

#include <cstring>

namespace persia {

namespace {

// A copy of constant size is a few moves, of unknown size a call.
template <typename Copy>
bool each_row(Span<const std::uint8_t> source, std::size_t row_bytes, Span<const std::int64_t> rows,
              std::uint8_t* out, Copy copy) {
    const std::size_t num_rows = source.size() / row_bytes;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto row = static_cast<std::uint64_t>(rows[i]);
        if (row >= num_rows) return false;
        copy(out + i * row_bytes, source.data() + row * row_bytes);
    }
    return true;
}

}  // namespace

bool gather(Span<const std::uint8_t> source, std::size_t row_bytes, Span<const std::int64_t> rows,
            Span<std::uint8_t> out) {
    const auto run = [&](auto copy) { return each_row(source, row_bytes, rows, out.data(), copy); };
    switch (row_bytes) {
        case 4:
            return run([](std::uint8_t* to, const std::uint8_t* from) { std::memcpy(to, from, 4); });
        case 8:
            return run([](std::uint8_t* to, const std::uint8_t* from) { std::memcpy(to, from, 8); });
        case 52:  // Criteo's 13 dense columns
            return run([](std::uint8_t* to, const std::uint8_t* from) { std::memcpy(to, from, 52); });
        default:
            return run([=](std::uint8_t* to, const std::uint8_t* from) { std::memcpy(to, from, row_bytes); });
    }
}

}  // namespace persia
