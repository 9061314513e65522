#include <algorithm>

#include "arrays.h"
#include "bindings.h"
#include "persia/criteo_lines.h"

namespace {

using namespace persia_bindings;

py::tuple parse(const py::object& text, const py::object& label_array, const py::object& dense_array,
                const py::object& id_array, std::size_t begin, const py::object& bad_array) {
    const auto characters = span_of<const char>(check_array(text, "text", {kUint8}, {any('n')}));
    const py::array labels = check_array(label_array, "labels", {kFloat32}, {any('N')}, Access::kWrite);
    const py::ssize_t capacity = labels.shape(0);
    const py::array dense =
        check_array(dense_array, "dense", {kFloat32}, {capacity, persia::kCriteoDense}, Access::kWrite);
    py::ssize_t columns = capacity;  // or more
    if (py::isinstance<py::array>(id_array)) {
        const auto given = py::reinterpret_borrow<py::array>(id_array);
        if (given.ndim() == 2) columns = std::max(capacity, given.shape(1));
    }
    const py::array ids =
        check_array(id_array, "ids", {kUint64}, {persia::kCriteoIds, columns}, Access::kWrite);
    const py::array bad = check_array(bad_array, "bad", {kInt64}, {any('M'), 3}, Access::kWrite);
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

constexpr const char* kParse =
    R"(Parses lines of Criteo's layout from `text` to rows `begin` and on of the arrays.

Shapes: text uint8 [n], which ends in a newline; labels float32 [N]; dense float32 [N, 13] (max(x, 0),
missing 0); ids uint64 [26, N or more] (a feature's lie together; missing is 2^32); bad int64 [M, 3].
Stops when the arrays are full. Returns how many bytes were used, rows made, lines read (blank ones too),
and lines left out because they aren't of the layout. `bad` gets the first M of these as line (from 0),
place of its first byte, and first column that is wrong (-1: the number of columns).)";

}  // namespace

void bind_criteo_lines(py::module_& m) {
    m.def("parse_criteo_lines", &parse, py::arg("text"), py::kw_only(), py::arg("labels"), py::arg("dense"),
          py::arg("ids"), py::arg("begin"), py::arg("bad"), kParse);
}
