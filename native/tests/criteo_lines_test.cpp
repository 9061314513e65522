#include "persia/criteo_lines.h"

#include <string>
#include <vector>

#include "check.h"

using namespace persia;

// The text lies at the end of its block, so that a sanitizer sees a read behind it; properties are tested
// from Python (tests/native/test_criteo_lines.py).
CriteoParsed parse(const std::string& text, std::vector<float>& labels, std::vector<float>& dense,
                   std::vector<std::uint64_t>& ids, std::vector<CriteoBadLine>& bad) {
    const std::vector<char> block(text.begin(), text.end());
    const std::size_t capacity = labels.size();
    dense.resize(capacity * kCriteoDense);
    ids.resize(capacity * kCriteoIds);
    return parse_criteo_lines(block, {labels.data(), dense.data(), ids.data(), capacity, capacity}, bad);
}

int main() {
    std::string good = "1", empty = "0";
    for (std::size_t k = 0; k < kCriteoDense; ++k) good += "\t" + std::to_string(k * 100);
    for (std::size_t k = 0; k < kCriteoIds; ++k) good += k % 2 ? "\t0000000f" : "\tAb";
    empty.append(kCriteoColumns - 1, '\t');
    std::vector<float> labels(3), dense;
    std::vector<std::uint64_t> ids;
    std::vector<CriteoBadLine> bad(1);

    const std::string text = good + "\n\r\n2" + good + "\nx\n" + empty + "\r\n" + good + "\n" + good + "\n";
    const CriteoParsed parsed = parse(text, labels, dense, ids, bad);
    CHECK(parsed.rows == 3 && parsed.lines == 6 && parsed.bad == 2);
    CHECK(parsed.bytes == text.size() - good.size() - 1);
    CHECK(bad[0].line == 2 && bad[0].offset == static_cast<std::int64_t>(good.size()) + 3);
    CHECK(bad[0].column == 0);
    CHECK(labels == (std::vector<float>{1, 0, 1}));
    for (std::size_t k = 0; k < kCriteoDense; ++k) {
        CHECK(dense[k] == 100.0f * static_cast<float>(k) && dense[kCriteoDense + k] == 0);
    }
    for (std::size_t k = 0; k < kCriteoIds; ++k) {
        CHECK(ids[3 * k] == (k % 2 ? 0xf : 0xab) && ids[3 * k + 1] == kCriteoMissingId);
    }
    CHECK(parse("", labels, dense, ids, bad).bytes == 0);
    CHECK(parse("\n", labels, dense, ids, bad).lines == 1);
    return 0;
}
