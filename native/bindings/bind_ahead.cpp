// A server's pulls ahead of their step: rows at once, later those that have changed.
#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "locked_table.h"
#include "pending_pull.h"
#include "ring_ends.h"
#include "table_set_rows.h"

namespace {

using namespace persia_bindings;

void look_ahead(const TableSet& self, PendingPull& pull, const Groups& out, std::int64_t since) {
    if (!pull.wanted.empty()) throw py::value_error("wanted: expected None, as all rows are sent");
    const auto rows = to_rows<std::byte>(self, out, "out");
    pull.since = check_step(since);
    pull.prepare();
    pull.differs = persia::AlignedArray<std::uint8_t>(pull.keys.size());
    std::fill_n(pull.differs.data(), pull.differs.size(), std::uint8_t{0});
    const py::gil_scoped_release nogil;
    self.look_ahead(pull.of(), rows, pull.slots);
}

void check_ahead(const PendingPull& pull) {
    if (pull.differs.size() == pull.keys.size() && pull.slots.size() == pull.keys.size()) return;
    throw py::value_error("pull: expected one that look_ahead() has seen");
}

bool mark_differing(TableSet& self, PendingPull& pull, bool alone) {
    check_ahead(pull);
    const std::uint32_t at = check_step(static_cast<std::int64_t>(pull.step));
    const py::gil_scoped_release nogil;
    pull.noted = alone && self.calm();
    self.mark_differing(pull.of(), pull.since, pull.noted ? at : 0, pull.slots, pull.differs);
    bool here = true;
    for (std::size_t i = 0; i < pull.differs.size(); ++i) {
        here &= (pull.differs[i] == 0) | (pull.slots[i] != persia::kNoSlot);
    }
    return here;
}

py::array_t<std::uint8_t> marked(const TableSet& self, const PendingPull& pull) {
    if (pull.slots.size() != pull.keys.size()) throw py::value_error("pull: expected one that is answered");
    py::array_t<std::uint8_t> found(static_cast<py::ssize_t>(pull.keys.size()));
    const Span<std::uint8_t> to{found.mutable_data(), pull.keys.size()};
    const py::gil_scoped_release nogil;
    self.say_marked(pull.of(), pull.slots, to);
    return found;
}

void pull_again(TableSet& self, PendingPull& pull) {
    check_ahead(pull);
    const std::uint32_t at = check_step(static_cast<std::int64_t>(pull.step));
    const py::gil_scoped_release nogil;
    self.pull_again(pull.of(), at, pull.since, pull.noted, pull.slots, pull.differs, pull.epochs);
}

// Which rows were noted, of all or of those that have a 1 in `chosen`: these are said once.
class Noted {
  public:
    Noted(PendingPull& pull, const py::object& chosen) : pull_(pull), noted_(pull.differs) {
        check_ahead(pull);
        if (chosen.is_none()) return;
        const auto size = static_cast<py::ssize_t>(pull.keys.size());
        const auto array = check_array(chosen, "chosen", {kUint8}, {size});
        const auto ones = span_of<const std::uint8_t>(array);
        some_ = persia::AlignedArray<std::uint8_t>(ones.size());
        for (std::size_t i = 0; i < ones.size(); ++i) some_[i] = ones[i] & pull.differs[i];
        noted_ = some_;
    }
    Noted(const Noted&) = delete;
    Noted& operator=(const Noted&) = delete;

    Span<const std::uint8_t> operator*() const { return noted_; }
    void said() const {
        for (std::size_t i = 0; i < some_.size(); ++i)
            pull_.differs[i] &= static_cast<std::uint8_t>(~some_[i]);
    }

  private:
    PendingPull& pull_;
    persia::AlignedArray<std::uint8_t> some_;
    Span<const std::uint8_t> noted_;
};

py::list differing(TableSet& self, PendingPull& pull, const std::string& wire_name,
                   const py::object& chosen) {
    const Noted noted(pull, chosen);
    const persia::Wire wire = wire_named(wire_name);
    const std::vector<std::uint64_t> counts = self.row_counts(pull.counts, *noted);
    py::list groups;
    std::vector<std::uint32_t*> positions;
    std::vector<persia::Rows> rows;
    for (std::size_t g = 0; g < counts.size(); ++g) {
        py::array_t<std::uint32_t> at(static_cast<py::ssize_t>(counts[g]));
        py::array values = wire_rows(wire, counts[g], self.dims()[g]);
        positions.push_back(at.mutable_data());
        rows.push_back({static_cast<std::byte*>(values.mutable_data()), wire, counts[g]});
        groups.append(py::make_tuple(at, values));
    }
    {
        const py::gil_scoped_release nogil;
        self.encode_differing(pull.of(), pull.slots, *noted, positions, rows);
    }
    noted.said();
    return groups;
}

// The number of rows sent, or nothing: the ring has no room for the record in one piece.
std::optional<std::uint64_t> send_differing(TableSet& self, PendingPull& pull, Producer& producer,
                                            std::uint16_t kind, const std::string& wire_name,
                                            std::uint64_t tag, const py::object& chosen) {
    const Noted noted(pull, chosen);
    const persia::Wire wire = wire_named(wire_name);
    const std::vector<std::uint64_t> counts = self.row_counts(pull.counts, *noted);
    const std::size_t num_groups = counts.size();
    BodyLayout layout(2 * num_groups);
    for (const std::uint64_t count : counts) {
        layout.add({PendingPull::kUint32Code, 1, count, 1}, sizeof(std::uint32_t));
    }
    std::uint64_t sent = 0;
    for (std::size_t g = 0; g < num_groups; ++g) {
        const ArrayEntry entry = entry_of_rows(wire, counts[g], self.dims()[g]);
        layout.add(entry, kBytes[entry.dtype]);
        sent += counts[g];
    }
    std::uint8_t* const body = producer.ring.reserve({kind, pull.trainer, pull.step, tag}, layout);
    if (body == nullptr) return std::nullopt;
    std::vector<std::uint32_t*> positions;
    std::vector<persia::Rows> rows;
    for (std::size_t g = 0; g < num_groups; ++g) {
        positions.push_back(reinterpret_cast<std::uint32_t*>(body + layout.offsets[g]));
        auto* const values = reinterpret_cast<std::byte*>(body + layout.offsets[num_groups + g]);
        rows.push_back({values, wire, counts[g]});
    }
    try {
        const py::gil_scoped_release nogil;
        self.encode_differing(pull.of(), pull.slots, *noted, positions, rows);
    } catch (...) {
        producer.ring.cancel();
        throw;
    }
    producer.ring.commit();
    noted.said();
    return sent;
}

constexpr const char* kLookAhead =
    R"(Writes the rows of a pull to `out` ahead of its step, after step `since`; changes nothing.

Rows never seen are what a pull would begin them with, in tables that admit each key. `mark_differing` and
`pull_again` must follow, in this order.
Raises: ValueError if the pull has `wanted`.)";

constexpr const char* kMarkDiffering =
    R"(Notes which rows may have changed when the updates up to the step before are made; changes no row.

All pulls of the step before must have been made, and none of the same step. alone: there will be no other,
so that what the pull does may be noted in part if the set is `calm`. Returns whether each of these
rows is there: then, if the set is `calm`, no other will differ.)";

constexpr const char* kMarked =
    R"(Returns a 1 for each row of an answered pull, uint8 [U], whose update `push` makes first if asked to.)";

constexpr const char* kPullAgain =
    R"(Does what `pull` does, at its time, but without rows; notes more that aren't what was looked up.)";

constexpr const char* kDiffering =
    R"(Returns for each dim group the positions uint32 [M_g] and rows [M_g, D_g] of those that were noted.

After `pull_again`; or before, where `mark_differing` and `calm` allow it, once `push` has seen to the marked
rows. chosen: uint8 [U], only rows that have a 1, which are said once.)";

constexpr const char* kSendDiffering =
    R"(Writes to a ring what `differing` returns: all positions, then all rows; returns how many rows.

None if there is no room now, or the record would travel in chunks.)";

constexpr const char* kCalm =
    "Returns whether no row may go, and no admission change, before a pull of the next step.";

}  // namespace

void bind_ahead(py::class_<TableSet>& set) {
    set.def("look_ahead", &look_ahead, py::arg("pull"), py::arg("out"), py::arg("since"), kLookAhead)
        .def("mark_differing", &mark_differing, py::arg("pull"), py::kw_only(), py::arg("alone") = false,
             kMarkDiffering)
        .def("marked", &marked, py::arg("pull"), kMarked)
        .def("pull_again", &pull_again, py::arg("pull"), kPullAgain)
        .def("differing", &differing, py::arg("pull"), py::arg("wire"), py::arg("chosen") = py::none(),
             kDiffering)
        .def("send_differing", &send_differing, py::arg("pull"), py::arg("ring"), py::arg("kind"),
             py::arg("wire"), py::arg("tag") = 0, py::arg("chosen") = py::none(), kSendDiffering)
        .def("calm", &TableSet::calm, kCalm);
}
