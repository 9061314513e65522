#include <algorithm>

#include "bindings.h"
#include "persia/criteo_lines.h"
#include "table_arrays.h"

namespace {

using namespace persia_bindings;

py::tuple parse(const py::array& text, const py::array& labels, const py::array& dense, const py::array& ids,
                std::size_t begin, const py::array& bad) {
    if (text.ndim() != 1 || labels.ndim() != 1 || ids.ndim() != 2 || bad.ndim() != 2)
        throw py::value_error("expected text [n], labels [N], ids [26, N or more], bad [M, 3], got " +
                              array_text(text, Access::kRead) + ", " + array_text(labels, Access::kRead) +
                              ", " + array_text(ids, Access::kRead) + ", " + array_text(bad, Access::kRead));
    const py::ssize_t size = text.shape(0), capacity = labels.shape(0);
    constexpr ElementType kInt64{'i', 8, "int64"};
    check_array(text, "text", {kUint8}, {size}, Access::kRead);
    check_array(labels, "labels", {kFloat32}, {capacity}, Access::kWrite);
    check_array(dense, "dense", {kFloat32}, {capacity, persia::kCriteoDense}, Access::kWrite);
    check_array(ids, "ids", {kUint64}, {persia::kCriteoIds, std::max(capacity, ids.shape(1))},
                Access::kWrite);
    check_array(bad, "bad", {kInt64}, {bad.shape(0), 3}, Access::kWrite);
    const auto characters = span_of<const char>(text);
    if (!characters.empty() && characters[characters.size() - 1] != '\n')
        throw py::value_error("text: expected a newline at its end");
    if (begin > static_cast<std::size_t>(capacity))
        throw py::value_error("begin: expected at most " + std::to_string(capacity) + ", got " +
                              std::to_string(begin));
    const persia::CriteoRows rows{data_of<float>(labels) + begin,
                                  data_of<float>(dense) + begin * persia::kCriteoDense,
                                  data_of<std::uint64_t>(ids) + begin, static_cast<std::size_t>(ids.shape(1)),
                                  static_cast<std::size_t>(capacity) - begin};
    static_assert(sizeof(persia::CriteoBadLine) == 3 * sizeof(std::int64_t));
    const persia::Span<persia::CriteoBadLine> described(data_of<persia::CriteoBadLine>(bad),
                                                        static_cast<std::size_t>(bad.shape(0)));
    persia::CriteoParsed parsed;
    {
        const py::gil_scoped_release nogil;
        parsed = persia::parse_criteo_lines(characters, rows, described);
    }
    return py::make_tuple(parsed.bytes, parsed.rows, parsed.lines, parsed.bad);
}

}  // namespace

void bind_criteo_lines(py::module_& m) {
    m.def("parse_criteo_lines", &parse, py::arg("text"), py::kw_only(), py::arg("labels"), py::arg("dense"),
          py::arg("ids"), py::arg("begin"), py::arg("bad"));
}
