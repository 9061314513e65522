// A native table as Python shares it; what two binding files need of it.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "bindings.h"
#include "persia/table.h"

namespace persia_bindings {

// A table with the lock that lets Python threads share it: the GIL is released while it works.
struct LockedTable {
    explicit LockedTable(const persia::TableConfig& config) : table(config) {}

    template <class Work>
    auto run(Work&& work) {
        const py::gil_scoped_release nogil;
        const std::lock_guard<std::mutex> lock(mutex);
        return work(table);
    }

    py::ssize_t dim() const { return table.dim(); }

    persia::Table table;
    std::mutex mutex;
};

inline std::uint32_t check_step(std::int64_t step) {
    if (step < 0 || step > persia::Table::kMaxStep) {
        throw py::value_error("step: got " + std::to_string(step) + ", expected 0 to " +
                              std::to_string(persia::Table::kMaxStep));
    }
    return static_cast<std::uint32_t>(step);
}

// Export, import and snapshots: what checkpoints use.
void bind_table_rows(py::class_<LockedTable>& table);

}  // namespace persia_bindings
