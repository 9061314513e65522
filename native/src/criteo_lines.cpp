#include "persia/criteo_lines.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace persia {
namespace {

constexpr std::uint32_t kNoDigit = 0x80000000;  // a bit that no eight digits set

constexpr std::array<std::uint32_t, 256> hex_digits() {
    std::array<std::uint32_t, 256> digits{};
    for (auto& digit : digits) digit = kNoDigit;
    for (std::uint32_t i = 0; i < 10; ++i) digits['0' + i] = i;
    for (std::uint32_t i = 0; i < 6; ++i) digits['a' + i] = digits['A' + i] = 10 + i;
    return digits;
}
constexpr std::array<std::uint32_t, 256> kHexDigits = hex_digits();

std::uint32_t hex_digit(char c) { return kHexDigits[static_cast<unsigned char>(c)]; }

// Moves `at` behind the digits of an integer, maybe none; false if it isn't one or doesn't fit int64.
bool parse_integer(const char*& at, std::int64_t& value) {
    const bool negative = *at == '-';
    const char* const first = at + negative;
    const char* p = first;
    std::uint64_t sum = 0;
    for (unsigned digit; (digit = static_cast<unsigned char>(*p) - unsigned{'0'}) <= 9; ++p) {
        // Only numbers of more than 18 digits come near the limit.
        if (p - first >= 18 && sum > (UINT64_MAX - digit) / 10) return false;
        sum = sum * 10 + digit;
    }
    if (negative && p == first) return false;
    if (sum > static_cast<std::uint64_t>(INT64_MAX) + negative) return false;
    value = static_cast<std::int64_t>(negative ? 0 - sum : sum);
    at = p;
    return true;
}

// The same for an id of 32 bits; none is a missing one.
bool parse_id(const char*& at, const char* end, std::uint64_t& value) {
    const char* p = at;
    if (end - p > 8) {  // nearly all ids have eight digits
        std::uint64_t sum = 0;
        std::uint32_t seen = 0;
        for (int i = 0; i < 8; ++i) {
            const std::uint32_t digit = hex_digit(p[i]);
            seen |= digit;
            sum = sum << 4 | digit;
        }
        if (!(seen & kNoDigit) && hex_digit(p[8]) == kNoDigit) {
            value = sum;
            at = p + 8;
            return true;
        }
    }
    std::uint64_t sum = 0;
    for (std::uint32_t digit; (digit = hex_digit(*p)) != kNoDigit; ++p) {
        sum = sum << 4 | digit;
        if (sum > UINT32_MAX) return false;
    }
    value = p == at ? kCriteoMissingId : sum;
    at = p;
    return true;
}

// Row `row` from the line at `p`, and `p` behind its newline; else the column that isn't of the layout.
std::size_t parse_row(const char*& p, const char* end, const CriteoRows& rows, std::size_t row) {
    std::int64_t number;
    const char* const line = p;
    if (!parse_integer(p, number) || p == line || number < 0 || number > 1 || *p != '\t') return 0;
    rows.labels[row] = static_cast<float>(number);
    std::size_t column = 1;
    float* const dense = rows.dense + row * kCriteoDense;
    for (std::size_t k = 0; k < kCriteoDense; ++k, ++column) {
        if (!parse_integer(++p, number) || *p != '\t') return column;
        dense[k] = static_cast<float>(std::max<std::int64_t>(number, 0));
    }
    std::uint64_t* id = rows.ids + row;
    for (std::size_t k = 0; k + 1 < kCriteoIds; ++k, ++column, id += rows.id_stride) {
        if (!parse_id(++p, end, *id) || *p != '\t') return column;
    }
    if (!parse_id(++p, end, *id)) return column;
    p += *p == '\r';
    if (*p != '\n') return column;
    ++p;
    return kCriteoColumns;
}

}  // namespace

CriteoParsed parse_criteo_lines(Span<const char> text, const CriteoRows& rows, Span<CriteoBadLine> bad) {
    const char* const end = text.end();
    const char* p = text.begin();
    CriteoParsed parsed{0, 0, 0, 0};
    for (; p != end && parsed.rows < rows.capacity; ++parsed.lines) {
        const char* const line = p;
        if (*p == '\n') {
            ++p;
            continue;
        }
        if (*p == '\r' && p[1] == '\n') {
            p += 2;
            continue;
        }
        const std::size_t column = parse_row(p, end, rows, parsed.rows);
        if (column == kCriteoColumns) {
            ++parsed.rows;
            continue;
        }
        p = static_cast<const char*>(std::memchr(line, '\n', static_cast<std::size_t>(end - line))) + 1;
        if (parsed.bad < bad.size()) {
            const bool whole = std::count(line, p, '\t') + 1 == static_cast<std::ptrdiff_t>(kCriteoColumns);
            bad[parsed.bad] = {static_cast<std::int64_t>(parsed.lines), line - text.begin(),
                               whole ? static_cast<std::int64_t>(column) : -1};
        }
        ++parsed.bad;
    }
    parsed.bytes = static_cast<std::size_t>(p - text.begin());
    return parsed;
}

}  // namespace persia
