// Several rings at a time: one record to each, and which of them have news.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "parts.h"
#include "places.h"

namespace persia_bindings {

// Sends each producer its part; returns (position, record) of those that could not be written whole, or whose
// producer is null.
template <class Producer>
std::vector<std::pair<std::size_t, Outgoing>> post_each(const std::vector<Producer*>& producers,
                                                        const py::int_& kind, const py::int_& step,
                                                        const py::int_& trainer, const py::int_& tag,
                                                        const std::vector<const Parts*>& arrays) {
    const persia::RecordFields fields = fields_of(kind, step, trainer, tag);
    check_count(arrays.size());
    std::vector<py::array> held;
    std::uint64_t total_bytes = 0;
    for (const Parts* parts : arrays) {
        if (parts->shares->num_servers() != producers.size()) {
            refuse("got an array for " + std::to_string(parts->shares->num_servers()) + " servers and " +
                   std::to_string(producers.size()) + " rings, expected equal numbers");
        }
        held.push_back(parts->array);
        total_bytes += static_cast<std::uint64_t>(parts->array.nbytes());
    }
    std::vector<std::pair<std::size_t, Message>> left;
    const auto go = [&] {
        Message message;
        for (std::size_t i = 0; i < producers.size(); ++i) {
            message.fields = fields;
            message.layout.clear(arrays.size());
            message.pieces.clear();
            message.begun = false;
            message.written = 0;
            for (const Parts* parts : arrays) parts->add(i, message);
            if (Producer* const producer = producers[i]; producer != nullptr) {
                while (!message.complete() && producer->ring.write(message)) {
                }
                if (message.complete()) continue;
            }
            left.emplace_back(i, std::exchange(message, Message{}));
        }
    };
    if (total_bytes < kLargeBytes) {
        go();
    } else {
        const py::gil_scoped_release nogil;
        go();
    }
    std::vector<std::pair<std::size_t, Outgoing>> result;
    for (auto& each : left) result.emplace_back(each.first, Outgoing{std::move(each.second), held});
    return result;
}

// The rings to which several peers write.
template <class Consumer>
struct Consumers {
    explicit Consumers(const std::vector<py::object>& objects_) : objects(objects_) {
        for (const py::object& each : objects) {
            consumers.push_back(py::cast<Consumer*>(each));
            near.push_back(!consumers.back()->held.front().is_none());
        }
    }

    // The position of the first ring from `begin` on that has an entry, else their number. Tells the
    // producers of the others what was released, as polling them would.
    std::size_t next(std::size_t begin) {
        for (; begin < consumers.size(); ++begin) {
            persia::RingConsumer& ring = consumers[begin]->ring;
            if (ring.has_news()) break;
            ring.publish_tail();
        }
        return begin;
    }

    // Takes the records with these fields that lie next in their rings, whole and on this node, and copies
    // their rows to their places. Returns the positions of their rings and the largest tag.
    std::pair<std::vector<std::size_t>, std::uint64_t> fill(const py::int_& kind, const py::int_& step,
                                                            const py::int_& trainer, const py::object& tag,
                                                            const persia::Shares& shares,
                                                            const py::sequence& into,
                                                            const py::object& before) {
        const persia::RecordFields fields =
            fields_of(kind, step, trainer, tag.is_none() ? py::int_(0) : py::int_(tag));
        const bool any_tag = tag.is_none();
        if (shares.num_servers() != consumers.size()) {
            refuse("got rows of " + std::to_string(shares.num_servers()) + " servers and " +
                   std::to_string(consumers.size()) + " rings, expected equal numbers");
        }
        const Places places(shares, into, before);
        std::pair<std::vector<std::size_t>, std::uint64_t> found{{}, 0};
        const auto go = [&] {
            for (std::size_t i = 0; i < consumers.size(); ++i) {
                persia::EntryHeader header;
                Consumer& consumer = *consumers[i];
                if (!near[i] || consumer.partial || !consumer.ring.peek(header)) continue;
                if (header.kind != fields.kind || header.step != fields.step ||
                    header.trainer != fields.trainer || (!any_tag && header.tag != fields.tag) ||
                    header.chunk_bytes != header.body_bytes) {
                    continue;
                }
                persia::RingConsumer::Entry entry;
                consumer.ring.next(entry);
                places.fill(i, Body(entry.body, header.body_bytes, header.num_arrays));
                consumer.ring.release(entry.number);
                consumer.records += 1;
                found.first.push_back(i);
                found.second = std::max(found.second, header.tag);
            }
        };
        if (places.bytes() < kLargeBytes) {
            go();
        } else {
            const py::gil_scoped_release nogil;
            go();
        }
        return found;
    }

    std::vector<py::object> objects;  // keeps them alive
    std::vector<Consumer*> consumers;
    std::vector<bool> near;  // whether release tells the producer
};

}  // namespace persia_bindings
