// Criteo's text layout: lines of 40 values between tabs, a label, 13 integers and 26 hexadecimal ids.
#pragma once

#include <cstddef>
#include <cstdint>

#include "persia/span.h"

namespace persia {

inline constexpr std::size_t kCriteoDense = 13;
inline constexpr std::size_t kCriteoIds = 26;
inline constexpr std::size_t kCriteoColumns = 1 + kCriteoDense + kCriteoIds;
inline constexpr std::uint64_t kCriteoMissingId = std::uint64_t{1} << 32;

// Where rows go; row i of each array is one line's.
struct CriteoRows {
    float* labels;             // [capacity]
    float* dense;              // [capacity, 13]: max(x, 0), missing 0
    std::uint64_t* ids;        // [26, id_stride]: a feature's ids lie together; missing is kCriteoMissingId
    std::size_t id_stride;     // at least the capacity
    std::size_t capacity = 0;  // rows
};

struct CriteoBadLine {
    std::int64_t line;    // from 0, counting blank lines too
    std::int64_t offset;  // of its first byte in the text
    std::int64_t column;  // the first that isn't of the layout; -1: the number of columns
};

struct CriteoParsed {
    std::size_t bytes;  // of the text that were used: whole lines, all of them unless the rows are full
    std::size_t rows;
    std::size_t lines;  // with blank and bad ones
    std::size_t bad;    // lines that are no rows; the first of them are described in `bad`
};

// Parses lines until the text ends or `rows` is full. A line ends in "\n" or "\r\n", the last one too
// (precondition); blank lines are skipped. A value may be empty, but for the label; integers are decimal and
// fit int64, ids fit uint32, in upper or lower case.
CriteoParsed parse_criteo_lines(Span<const char> text, const CriteoRows& rows, Span<CriteoBadLine> bad);

}  // namespace persia
