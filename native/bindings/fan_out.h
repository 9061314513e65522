// Several rings at a time: one record to each, and which of them have news.
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "parts.h"

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

// Positions of the consumers that have an entry; tells the producers of the others what was released.
template <class Consumer>
std::vector<std::size_t> with_news(const std::vector<Consumer*>& consumers) {
    std::vector<std::size_t> found;
    for (std::size_t i = 0; i < consumers.size(); ++i) {
        if (consumers[i]->ring.has_news()) {
            found.push_back(i);
        } else {
            consumers[i]->ring.publish_tail();
        }
    }
    return found;
}

}  // namespace persia_bindings
