// A pull between the request for its rows and the update with their gradients.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "persia/aligned_array.h"
#include "persia/table_set.h"
#include "places.h"

namespace persia_bindings {

using persia::Key;
using persia::Span;

// U keys, T tables.
struct PendingPull {
    // Of arrays, which it keeps.
    PendingPull(std::uint64_t step_, std::uint32_t trainer_, const py::object& keys_,
                const py::object& counts_, std::uint32_t worker_, const py::object& wanted_)
        : step(step_), trainer(trainer_), worker(worker_) {
        const auto keep = [&](const py::object& array, const char* name, const ElementType& type) {
            held.push_back(check_array(array, name, {type}, {any('U')}));
            return held.back();
        };
        keys = span_of<const Key>(keep(keys_, "keys", kUint64));
        counts = span_of<const std::uint32_t>(keep(counts_, "counts", kUint32));
        if (!wanted_.is_none()) wanted = span_of<const std::uint8_t>(keep(wanted_, "wanted", kUint8));
    }

    // Of a record's arrays, which are copied: keys, counts and perhaps wanted.
    PendingPull(std::uint64_t step_, std::uint32_t trainer_, const Body& body)
        : step(step_), trainer(trainer_) {
        const bool has_wanted = body.parts.size() == 3;
        const auto check = [&](std::size_t i, std::uint32_t code) {
            const ArrayEntry& entry = body.parts[i].entry;
            if (entry.dtype == code && entry.num_dimensions == 1) return;
            throw std::invalid_argument("array " + std::to_string(i) + " of a pull is " + describe(entry) +
                                        ", expected " + kNames[code] + " in one dimension");
        };
        if (body.parts.size() != 2 && !has_wanted) {
            throw std::invalid_argument("a pull has " + std::to_string(body.parts.size()) +
                                        " arrays, expected 2 or 3");
        }
        check(0, kUint64Code);
        check(1, kUint32Code);
        if (has_wanted) check(2, kUint8Code);
        std::size_t bytes = 0;
        for (const auto& part : body.parts) bytes += part.entry.rows * kBytes[part.entry.dtype];
        memory = persia::AlignedArray<std::uint8_t>(bytes);
        std::uint8_t* to = memory.data();  // widest elements first: all are aligned
        const auto copy = [&](std::size_t i) {
            const auto& part = body.parts[i];
            const std::size_t size = part.entry.rows * kBytes[part.entry.dtype];
            if (size != 0) std::memcpy(to, part.data, size);
            return std::exchange(to, to + size);
        };
        keys = {reinterpret_cast<const Key*>(copy(0)), body.parts[0].entry.rows};
        counts = {reinterpret_cast<const std::uint32_t*>(copy(1)), body.parts[1].entry.rows};
        if (has_wanted) wanted = {copy(2), body.parts[2].entry.rows};
    }

    // Of those keys of an answered pull that have a 1.
    PendingPull(const PendingPull& of, Span<const std::uint8_t> chosen)
        : step(of.step), trainer(of.trainer), worker(of.worker) {
        std::size_t size = 0;
        for (const std::uint8_t one : chosen) size += one;
        const std::size_t bytes = size * sizeof(Key) + of.counts.size() * sizeof(std::uint32_t);
        memory = persia::AlignedArray<std::uint8_t>(bytes);
        auto* const to_keys = reinterpret_cast<Key*>(memory.data());
        auto* const to_counts = reinterpret_cast<std::uint32_t*>(to_keys + size);
        keys = {to_keys, size};
        counts = {to_counts, of.counts.size()};
        prepare();
        std::size_t from = 0, to = 0;
        for (std::size_t t = 0; t < of.counts.size(); ++t) {
            epochs[t] = of.epochs[t];
            const std::size_t begin = to;
            for (const std::size_t end = from + of.counts[t]; from < end; ++from) {
                if (chosen[from] == 0) continue;
                to_keys[to] = of.keys[from];
                slots[to++] = of.slots[from];
            }
            to_counts[t] = static_cast<std::uint32_t>(to - begin);
        }
    }

    // Makes room for what a pull tells: where rows lie, and since when.
    void prepare() {
        slots = persia::AlignedArray<std::uint32_t>(keys.size());
        epochs = persia::AlignedArray<std::uint32_t>(counts.size());
    }

    persia::RecordKeys of() const { return {keys, counts}; }

    static constexpr std::uint32_t kUint8Code = 2, kUint32Code = 6, kUint64Code = 8;  // positions in kNames

    std::uint64_t step;
    std::uint32_t trainer, worker = 0;
    Span<const Key> keys;                        // [U]
    Span<const std::uint32_t> counts;            // [T]
    Span<const std::uint8_t> wanted;             // [U], or none
    persia::AlignedArray<std::uint32_t> slots;   // [U], empty before the pull is answered
    persia::AlignedArray<std::uint32_t> epochs;  // [T], likewise
    std::uint32_t since = 0;                     // the step after which rows were looked up ahead,
    persia::AlignedArray<std::uint8_t> differs;  // [U], and which of them aren't these any more
    bool noted = false;                          // whether tables know already that the step uses them

  private:
    std::vector<py::array> held;
    persia::AlignedArray<std::uint8_t> memory;
};

}  // namespace persia_bindings
