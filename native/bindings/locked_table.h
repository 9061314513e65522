// A native table as Python shares it; what several binding files need of it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "bindings.h"
#include "persia/table_set.h"

namespace persia_bindings {

// A table that Python threads share: the GIL is released while it works.
struct LockedTable : persia::SharedTable {
    using SharedTable::SharedTable;

    template <class Work>
    auto run(Work&& work) {
        const py::gil_scoped_release nogil;
        const std::lock_guard<std::mutex> lock(mutex);
        return work(table);
    }

    py::ssize_t dim() const { return table.dim(); }
};

using TableClass = py::class_<LockedTable, std::shared_ptr<LockedTable>>;

// How many rows were (applied, evicted in flight, unadmitted, non-finite).
using Counts = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

inline Counts to_tuple(const persia::PushCounts& counts) {
    return {counts.applied, counts.evicted_in_flight, counts.unadmitted, counts.nonfinite};
}

inline std::uint32_t check_step(std::int64_t step) {
    if (step < 0 || step > persia::Table::kMaxStep) {
        throw py::value_error("step: got " + std::to_string(step) + ", expected 0 to " +
                              std::to_string(persia::Table::kMaxStep));
    }
    return static_cast<std::uint32_t>(step);
}

// Export, import and snapshots: what checkpoints use.
void bind_table_rows(TableClass& table);

}  // namespace persia_bindings
