// The table's rows on their way to checkpoints and back.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "arrays.h"
#include "locked_table.h"

namespace persia_bindings {
namespace {

using persia::Key;
using persia::Table;

constexpr std::size_t kRowsAtOnce = 2048;  // of changes, that others wait for

// Without a copy: the array keeps the vector.
template <class T>
py::array_t<T> to_array(std::vector<T> values, std::vector<py::ssize_t> shape) {
    auto* kept = new std::vector<T>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(std::move(shape), kept->data(), owner);
}

py::array_t<std::uint8_t> to_bytes(std::vector<std::byte> values, std::vector<py::ssize_t> shape) {
    auto* kept = new std::vector<std::byte>(std::move(values));
    const py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<std::byte>*>(p); });
    return py::array_t<std::uint8_t>(std::move(shape), reinterpret_cast<std::uint8_t*>(kept->data()), owner);
}

py::dict to_dict(const LockedTable& self, persia::ExportedRows exported) {
    const auto n = static_cast<py::ssize_t>(exported.keys.size());
    py::dict rows;
    rows["keys"] = to_array(std::move(exported.keys), {n});
    rows["rows"] = to_array(std::move(exported.rows), {n, self.dim()});
    rows["state"] = to_array(std::move(exported.state), {n, self.table.state_width()});
    rows["stamps"] = to_array(std::move(exported.stamps), {n});
    if (self.table.has_steps()) rows["steps"] = to_array(std::move(exported.steps), {n});
    return rows;
}

py::dict export_bucket(LockedTable& self, std::uint32_t bucket) {
    return to_dict(self, self.run([&](Table& table) { return table.export_bucket(bucket); }));
}

std::uint64_t rows_since(LockedTable& self, std::int64_t since) {
    const std::uint32_t after = check_step(since);
    const auto& config = self.table.config();
    const py::gil_scoped_release nogil;
    std::uint64_t count = 0;
    for (std::uint32_t b = config.first_bucket; b < config.end_bucket; ++b) {
        const std::lock_guard<std::mutex> lock(self.mutex);
        count += self.table.rows_since(b, after);
    }
    return count;
}

py::array removed_keys(LockedTable& self) {
    const auto keys = self.run([](Table& table) { return table.removed(); });
    return to_array(keys, {static_cast<py::ssize_t>(keys.size())});
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

void append(persia::ExportedRows& to, const persia::ExportedRows& from) {
    append(to.keys, from.keys);
    append(to.rows, from.rows);
    append(to.state, from.state);
    append(to.stamps, from.stamps);
    append(to.steps, from.steps);
}

// into: 0 unless rows on disk are to be copied to a file of that number.
py::tuple snapshot(LockedTable& self, std::uint32_t first, std::uint32_t end, std::uint32_t after,
                   std::uint32_t into) {
    if (first >= end) throw py::value_error("buckets: got an empty range");
    persia::ExportedRows rows, new_rows;
    std::vector<std::uint64_t> counts, new_counts, known_counts;
    std::vector<std::uint32_t> files, numbers;
    std::vector<std::uint32_t> ages, counted;
    std::vector<std::uint8_t> sightings;
    std::vector<std::byte> records;
    {
        const py::gil_scoped_release nogil;
        for (std::uint32_t bucket = first; bucket < end; ++bucket) {
            persia::BucketState state;
            persia::ExportedRows part;
            persia::CopiedRows copied;
            {  // others may have the table after each bucket
                const std::lock_guard<std::mutex> lock(self.mutex);
                part = self.table.snapshot_bucket(bucket, after, state, into, &copied);
            }
            append(rows, part);
            append(new_rows, copied.rows);
            append(records, copied.records);
            append(files, copied.files);
            append(numbers, copied.numbers);
            append(sightings, state.sightings);
            counts.push_back(part.keys.size());
            new_counts.push_back(copied.count);
            known_counts.push_back(copied.files.size());
            ages.push_back(state.age);
            counted.push_back(state.counted);
        }
    }
    const auto b = static_cast<py::ssize_t>(counts.size());
    const auto cells = static_cast<py::ssize_t>(sightings.size()) / b;
    py::dict decides;
    decides["counts"] = to_array(std::move(counts), {b});
    decides["ages"] = to_array(std::move(ages), {b});
    decides["counted"] = to_array(std::move(counted), {b});
    decides["sightings"] = to_array(std::move(sightings), {b, cells});
    if (into == 0) return py::make_tuple(to_dict(self, std::move(rows)), decides);
    const auto known = static_cast<py::ssize_t>(files.size());
    py::dict places;
    places["counts"] = to_array(std::move(new_counts), {b});
    places["known"] = to_array(std::move(known_counts), {b});
    places["files"] = to_array(std::move(files), {known});
    places["numbers"] = to_array(std::move(numbers), {known});
    py::dict found;
    if (const auto record = static_cast<py::ssize_t>(self.table.record_bytes()); record != 0) {
        const auto n = static_cast<py::ssize_t>(records.size()) / record;
        found["records"] = to_bytes(std::move(records), {n, record});
    } else {
        found = to_dict(self, std::move(new_rows));
    }
    return py::make_tuple(to_dict(self, std::move(rows)), decides, found, places);
}

py::tuple snapshot_buckets(LockedTable& self, std::uint32_t first, std::uint32_t end, std::int64_t since) {
    return snapshot(self, first, end, check_step(since), 0);
}

py::tuple copy_buckets(LockedTable& self, std::uint32_t first, std::uint32_t end, std::uint32_t into) {
    if (into == 0) throw py::value_error("into: got 0, expected a file's number");
    return snapshot(self, first, end, 0, into);
}

void keep_copies(LockedTable& self, const std::vector<std::uint32_t>& files) {
    self.run([&](Table& table) { table.keep_copies({files.data(), files.size()}); });
}

void restore_bucket(LockedTable& self, std::uint32_t bucket, std::uint32_t age, std::uint32_t counted,
                    const py::object& sightings) {
    const auto cells = span_of<const std::uint8_t>(check_array(sightings, "sightings", {kUint8}, {any('C')}));
    const persia::BucketState state{age, counted, {cells.begin(), cells.end()}};
    self.run([&](Table& table) { table.restore_bucket(bucket, state); });
}

void begin_changes(LockedTable& self) {
    self.run([](Table& table) { table.begin_changes(); });
}

void mark_changes(LockedTable& self, const std::string& rows) {
    const persia::RowFormat format = persia::row_format_of(rows);
    self.run([&](Table& table) { table.mark_changes(format); });
}

py::tuple take_changes(LockedTable& self, std::size_t enough) {
    persia::ChangedRows changed;
    {
        const py::gil_scoped_release nogil;
        const auto copy = [&] {
            const std::lock_guard<std::mutex> lock(self.mutex);
            const bool more = self.table.copy_changes(kRowsAtOnce);
            self.table.take_changes(changed);
            return more && changed.keys.size() < enough;
        };
        // Others may have the table after each piece; without a pause this thread would lock it again at
        // once.
        while (copy()) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    const auto n = static_cast<py::ssize_t>(changed.keys.size());
    const auto row_bytes = static_cast<py::ssize_t>(changed.row_bytes);
    const auto data = to_bytes(std::move(changed.rows), {n, row_bytes});
    const auto gone = static_cast<py::ssize_t>(changed.removed.size());
    return py::make_tuple(to_array(std::move(changed.keys), {n}), data,
                          to_array(std::move(changed.removed), {gone}));
}

void return_changes(LockedTable& self, const py::object& keys, const py::object& removed) {
    const auto changed = span_of<const Key>(check_array(keys, "keys", {kUint64}, {any('n')}));
    const auto gone = span_of<const Key>(check_array(removed, "removed", {kUint64}, {any('m')}));
    self.run([&](Table& table) { table.return_changes(changed, gone); });
}

void import_rows(LockedTable& self, const py::dict& rows) {
    const bool has_state = rows.contains("state") || rows.contains("steps");
    const bool has_steps = has_state && self.table.has_steps();
    std::vector<std::string> names{"keys", "rows"};
    if (has_state) names.emplace_back("state");
    names.emplace_back("stamps");
    if (has_steps) names.emplace_back("steps");
    std::string expected;
    for (const std::string& name : names) expected += (expected.empty() ? "" : ", ") + name;
    for (const auto& item : rows) {
        const std::string name = py::str(item.first);
        if (std::find(names.begin(), names.end(), name) == names.end()) {
            throw py::value_error("rows: got an array '" + name + "', expected " + expected);
        }
    }
    const auto get = [&](const char* name, const ElementType& type,
                         std::initializer_list<py::ssize_t> shape) {
        if (rows.contains(name)) return check_array(rows[name], name, {type}, shape);
        throw py::value_error("rows: no array '" + std::string(name) + "', expected " + expected);
    };
    const auto keys = span_of<const Key>(get("keys", kUint64, {any('n')}));
    const auto n = static_cast<py::ssize_t>(keys.size());
    persia::ImportedRows imported{};
    imported.keys = keys;
    imported.rows = span_of<const float>(get("rows", kFloat32, {n, self.dim()}));
    imported.stamps = span_of<const std::uint32_t>(get("stamps", kUint32, {n}));
    imported.has_state = has_state;
    if (has_state)
        imported.state = span_of<const float>(get("state", kFloat32, {n, self.table.state_width()}));
    if (has_steps) imported.steps = span_of<const std::uint32_t>(get("steps", kUint32, {n}));
    self.run([&](Table& table) { table.import_rows(imported); });
}

bool adopt_rows(LockedTable& self, const std::string& path, std::uint32_t number, const py::object& chunks,
                std::uint64_t chunk_rows, std::uint32_t first_bucket, const py::object& offsets,
                const py::object& live) {
    const persia::SharedRows rows{
        path,
        number,
        span_of<const std::uint64_t>(check_array(chunks, "chunks", {kUint64}, {any('c')})),
        chunk_rows,
        first_bucket,
        span_of<const std::uint64_t>(check_array(offsets, "offsets", {kUint64}, {any('b')})),
        span_of<const std::uint8_t>(check_array(live, "live", {kUint8}, {any('m')}))};
    return self.run([&](Table& table) { return table.adopt_rows(rows); });
}

constexpr const char* kExportBucket =
    R"(Copies all n rows of a bucket, sorted by key: all that a checkpoint needs.

keys uint64 [n], rows float32 [n, D], state float32 [n, S], stamps uint32 [n] (the last step that used the
row) and, with "adam" and "adamw" only, steps uint32 [n] (updates of the row so far).)";

constexpr const char* kImportRows =
    R"(Adds rows of any of this shard's buckets, or replaces those already here.

Takes what `export_bucket` gives, rows in any order; without `state` and `steps` the optimizer's state is
that of new rows. `evict` may then be due.
Raises: ValueError for missing or unknown arrays, wrong widths and keys of other buckets, before anything
changes.)";

constexpr const char* kAdoptRows =
    R"(Takes those rows of a file that are of the buckets here, where they are; returns whether it has.

The file holds records as `copy_buckets` gives them, and stays open while rows of it are on disk. No row may
be here whose key is there too. False, and nothing is changed, if the disk tier has no room, or the table's
rows aren't stored as such records.
number: by which `copy_buckets` knows the file, 0 if it needn't. chunks: uint64 [c], where in the file each
`chunk_rows` records lie. offsets: uint64 [b + 1], the first record of each bucket from `first_bucket` on, and
the end. live: a bit a record, the lowest first: whether it is meant.
Raises: ValueError for what can't be such records, DiskError if they can't be read; the table is of no use
then.)";

constexpr const char* kBeginSnapshot =
    R"(Marks this moment: `snapshot_buckets` then copies its rows, bucket by bucket.

Every pull must have had its push; other calls may come in between. Before the first change to a row of a
bucket that wasn't copied yet, its old copy is kept aside (`snapshot_bytes`). A full snapshot begins to
note whose rows go, so that
the next may be incremental: `full=False`, and, if `can_be_incremental`, buckets since the full one's
step.
Raises: RuntimeError if a snapshot is under way.)";

constexpr const char* kSnapshotBuckets = R"(Copies buckets [first, end) as they were at the mark, each once.

Returns their rows, one bucket after the other, as `export_bucket` gives them, but also those past their
time to live and not swept away yet; and what each bucket decides by, for `restore_bucket`: `counts`
uint64 [b] of rows, `ages` and `counted` uint32 [b], `sightings` uint8 [b, C].
since: only rows with a greater stamp (0: all).)";

constexpr const char* kCopyBuckets =
    R"(As `snapshot_buckets`, but gives rows on disk for files that full snapshots share: each row once.

into: number, not 0, of the file that this snapshot adds; each needs one of its own.
Returns two more: those rows on disk that no file has yet and `into` must have, in this order, as the tier's
`records` (uint8 [n, record_bytes]; see docs/checkpoints.md) unless `record_bytes` is 0; and places:
`counts` uint64 [b] of these rows, `known` uint64 [b] of rows that files have, `files` and `numbers` uint32
[m] of the latter: a row's number is among those of its bucket in its file. Rows of extents that aren't full
are among the rows in memory.)";

constexpr const char* kKeepCopies =
    R"(Says before the first `copy_buckets` of a snapshot which files of earlier ones are still there.

What others have is copied anew.)";

constexpr const char* kRemovedKeys =
    "Returns the keys [n] whose rows went between the last full snapshot and the mark; some may have come "
    "back.";

constexpr const char* kTakeChanges =
    R"(Returns (keys [n], rows uint8 [n, bytes], removed [m]): what had changed at the last mark, as it was then.

Keys come in any order. Those in `removed` went; the ones that came back are in `keys` too, in this call or a
later one. Other threads may use the table meanwhile.
enough: after so many rows, or a few more, the rest is left to another call; one that gives nothing says that
nothing is left.)";

constexpr const char* kMarkChanges =
    R"(Ends the list of what has changed, for `take_changes`, and begins the next.

What the last mark's list had is in this one, if nobody has taken it.
rows: their format, as `ServedTable` takes it.)";

}  // namespace

void bind_table_rows(TableClass& table) {
    table.def("export_bucket", &export_bucket, py::arg("bucket"), kExportBucket)
        .def("import_rows", &import_rows, py::arg("rows"), kImportRows)
        .def("adopt_rows", &adopt_rows, py::arg("path"), py::arg("number"), py::arg("chunks"),
             py::arg("chunk_rows"), py::arg("first_bucket"), py::arg("offsets"), py::arg("live"), kAdoptRows)
        .def(
            "begin_snapshot",
            [](LockedTable& self, bool full) { self.run([&](Table& t) { t.begin_snapshot(full); }); },
            py::arg("full") = true, kBeginSnapshot)
        .def("snapshot_buckets", &snapshot_buckets, py::arg("first"), py::arg("end"), py::arg("since") = 0,
             kSnapshotBuckets)
        .def("copy_buckets", &copy_buckets, py::arg("first"), py::arg("end"), py::arg("into"), kCopyBuckets)
        .def("keep_copies", &keep_copies, py::arg("files"), kKeepCopies)
        .def(
            "copied_rows",
            [](LockedTable& self) { return self.run([](Table& t) { return t.copied_rows(); }); },
            "Counts, by the numbers of files, the rows that `copy_buckets` gave for them, and that are "
            "still on disk.")
        .def("rows_since", &rows_since, py::arg("since"),
             "Counts the rows that have a stamp greater than `since` now.")
        .def(
            "end_snapshot", [](LockedTable& self) { self.run([](Table& t) { t.end_snapshot(); }); },
            "Frees what is kept for a snapshot, finished or not.")
        .def("removed_keys", &removed_keys, kRemovedKeys)
        .def("begin_changes", &begin_changes, "Begins to note which rows change or go.")
        .def("mark_changes", &mark_changes, py::arg("rows"), kMarkChanges)
        .def("take_changes", &take_changes, py::arg("enough") = std::numeric_limits<std::size_t>::max(),
             kTakeChanges)
        .def("return_changes", &return_changes, py::arg("keys"), py::arg("removed"),
             "Takes back keys that `take_changes` gave: the next list has them again, with their rows.")
        .def("restore_bucket", &restore_bucket, py::arg("bucket"), py::arg("age"), py::arg("counted"),
             py::arg("sightings"),
             "Takes what `snapshot_buckets` gave, after the rows.\n\n"
             "Raises: ValueError for counts of another capacity.");
}

}  // namespace persia_bindings
