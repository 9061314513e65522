// Both ends of a ring, as Python holds them.
#pragma once

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ring_arrays.h"

namespace persia_bindings {

// Memory of a ring, and words of 8 bytes in it or beside it; None where these are out of reach.
inline py::array bytes_of(const py::object& object, const char* name) {
    return check_array(object, name, {kUint8}, {any('N')}, Access::kWrite);
}

inline persia::Span<std::uint64_t> words_of(const py::object& object, const char* name, py::ssize_t count) {
    if (object.is_none()) return {};
    return span_of<std::uint64_t>(check_array(object, name, {kUint64}, {count}, Access::kWrite));
}

// A bell lies in the first 8 bytes of a rank's shared memory.
inline persia::Bell* bell_of(const py::object& object) {
    return reinterpret_cast<persia::Bell*>(words_of(object, "bell", 1).data());
}

struct Producer {
    Producer(const py::object& data_, const py::object& tail, const py::object& words, const py::object& bell)
        : data(bytes_of(data_, "data")),
          held{tail, words, bell},
          ring(span_of<std::uint8_t>(data), data_of<std::uint64_t>(check_array(tail, "tail", {kUint64}, {1})),
               words_of(words, "words", data.size() / static_cast<py::ssize_t>(persia::kLine)),
               bell_of(bell)),
          announces(!words.is_none()) {}

    // True once all of it is written; where words are out of reach at most one entry a call.
    bool write(Outgoing& outgoing) {
        Message& message = outgoing.message;
        const auto go = [&] {
            while (!message.complete()) {
                if (!ring.write(message)) return false;
                if (!announces) break;
            }
            return message.complete();
        };
        if (message.layout.body_bytes < kLargeBytes) return go();
        const py::gil_scoped_release nogil;
        return go();
    }

    std::optional<std::vector<py::array>> reserve(const py::int_& kind, const py::int_& step,
                                                  const py::int_& trainer, const py::int_& tag,
                                                  const py::sequence& specs) {
        const persia::RecordFields fields = fields_of(kind, step, trainer, tag);
        check_count(specs.size());
        BodyLayout layout(specs.size());
        for (const py::handle item : specs) {
            const auto spec = py::cast<std::pair<py::object, std::vector<py::ssize_t>>>(item);
            const ArrayEntry entry = entry_of(py::dtype::from_args(spec.first), spec.second);
            layout.add(entry, kBytes[entry.dtype]);
        }
        std::uint8_t* const body = ring.reserve(fields, layout);
        if (body == nullptr) return std::nullopt;
        std::vector<py::array> views;
        for (std::size_t i = 0; i < layout.directory.size(); ++i) {
            const ArrayEntry& entry = layout.directory[i];
            views.push_back(view(entry.dtype, entry, body + layout.offsets[i], data));
        }
        return views;
    }

    void close() {
        ring.close();
        data = py::array();
        held.clear();
    }

    py::array data;
    std::vector<py::object> held;
    persia::RingProducer ring;
    bool announces;
};

struct Consumer {
    Consumer(const py::object& data_, const py::object& words_, const py::object& tail,
             const py::object& bell)
        : data(bytes_of(data_, "data")),
          words(check_array(words_, "words", {kUint64},
                            {data.size() / static_cast<py::ssize_t>(persia::kLine)}, Access::kWrite)),
          held{tail, bell},
          ring(span_of<std::uint8_t>(data), span_of<const std::uint64_t>(words),
               words_of(tail, "tail", 1).data(), bell_of(bell)) {}

    // (kind, step, trainer, tag, arrays, token for `release`), or None: nothing, or CLOSE, or part of a
    // record.
    py::object poll() {
        persia::RingConsumer::Entry entry;
        do {
            if (!ring.next(entry)) {
                ring.publish_tail();
                return py::none();
            }
            const persia::EntryHeader& header = entry.header;
            if (header.chunk_bytes == header.body_bytes && !partial) {
                if (header.kind == persia::kCloseKind) {
                    closed = true;
                    ring.release(entry.number);
                    ring.publish_tail();
                    return py::none();
                }
                return record(header, entry.body, data, py::int_(entry.number));
            }
            assemble(entry);
        } while (partial_bytes != entry.header.body_bytes);
        const py::array_t<std::uint8_t> buffer = *std::exchange(partial, std::nullopt);
        return record(entry.header, static_cast<std::uint8_t*>(const_cast<void*>(buffer.request().ptr)),
                      buffer, buffer);
    }

    // Whether the next entry is a whole record of this kind, whose header is then in `header`.
    bool peek(std::uint16_t kind, persia::EntryHeader& header) const {
        return !partial && ring.peek(header) && header.kind == kind &&
               header.chunk_bytes == header.body_bytes;
    }

    py::object peek_fields(std::uint16_t kind) const {
        persia::EntryHeader header;
        if (!peek(kind, header)) return py::none();
        return py::make_tuple(header.step, header.trainer);
    }

    // Calls use(header, body) with the next record, which `peek` has found, and gives its room back.
    template <class Use>
    void take(Use&& use) {
        persia::RingConsumer::Entry entry;
        if (partial || !ring.next(entry) || entry.header.chunk_bytes != entry.header.body_bytes) {
            throw persia::RingError("entry " + std::to_string(ring.next_number()) +
                                    " isn't there whole: look at it first");
        }
        try {
            use(entry.header, static_cast<const std::uint8_t*>(entry.body));
        } catch (const std::exception& error) {
            throw persia::RingError("entry " + std::to_string(entry.number) + ": " + error.what());
        }
        ring.release(entry.number);
        records += 1;
    }

    py::object record(const persia::EntryHeader& header, std::uint8_t* body, const py::handle& owner,
                      const py::object& token) {
        py::list arrays;
        try {
            arrays = parse(body, header.body_bytes, header.num_arrays, owner);
        } catch (const persia::RingError& error) {
            throw persia::RingError("entry " + std::to_string(ring.next_number() - 1) + ": " + error.what());
        }
        records += 1;
        return py::make_tuple(header.kind, header.step, header.trainer, header.tag, std::move(arrays), token);
    }

    // Copies a chunk to the record's private memory, and gives its room back.
    void assemble(const persia::RingConsumer::Entry& entry) {
        const persia::EntryHeader& header = entry.header;
        if (!partial) {
            partial_bytes = 0;
            if (spare && static_cast<std::uint64_t>(spare->size()) >= header.body_bytes) {
                partial = std::exchange(spare, std::nullopt);
            } else {
                partial = to_numpy(persia::AlignedArray<std::uint8_t>(header.body_bytes));
            }
        }
        if (header.chunk_begin != partial_bytes ||
            header.body_bytes > static_cast<std::uint64_t>(partial->size())) {
            throw persia::RingError("entry " + std::to_string(entry.number) + " goes on at byte " +
                                    std::to_string(header.chunk_begin) + " of its record, expected " +
                                    std::to_string(partial_bytes) + ": a chunk was lost");
        }
        std::uint8_t* const to = partial->mutable_data() + partial_bytes;
        {
            const py::gil_scoped_release nogil;
            std::memcpy(to, entry.body, header.chunk_bytes);
        }
        partial_bytes += header.chunk_bytes;
        ring.release(entry.number);
    }

    void release(const py::object& token) {
        if (py::isinstance<py::int_>(token)) {
            ring.release(py::cast<std::uint64_t>(token));
            return;
        }
        // Kept for the next such record: fresh pages cost more than the copy.
        const auto buffer = py::reinterpret_borrow<py::array_t<std::uint8_t>>(token);
        if (!spare || spare->size() < buffer.size()) spare = buffer;
    }

    void close() {
        ring.close();
        closed = true;
        data = py::array();
        words = py::array();
        held.clear();
    }

    py::array data;
    py::array words;
    std::vector<py::object> held;
    persia::RingConsumer ring;
    std::uint64_t records = 0;
    bool closed = false;
    std::optional<py::array_t<std::uint8_t>> partial, spare;
    std::uint64_t partial_bytes = 0;
};

}  // namespace persia_bindings
