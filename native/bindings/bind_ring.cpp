#include <atomic>

#include "bindings.h"
#include "fan_out.h"
#include "ring_ends.h"

namespace {

using namespace persia_bindings;

// What one loop waits for.
struct Watch {
    std::vector<py::object> objects;  // keeps them alive
    std::vector<const Producer*> producers;
    std::vector<const Consumer*> consumers;
    std::vector<persia::Bell*> bells;
    std::atomic<std::uint64_t> signals{0};
    std::uint64_t seen = 0;

    Watch(const std::vector<py::object>& producers_, const std::vector<py::object>& consumers_,
          const std::vector<py::object>& bells_) {
        for (const auto& each : producers_)
            producers.push_back(py::cast<const Producer*>(each)), objects.push_back(each);
        for (const auto& each : consumers_)
            consumers.push_back(py::cast<const Consumer*>(each)), objects.push_back(each);
        for (const auto& each : bells_) {
            bells.push_back(bell_of(each));
            objects.push_back(each);
        }
    }

    bool news() {
        for (const Consumer* each : consumers) {
            if (each->ring.has_news()) return true;
        }
        for (const Producer* each : producers) {
            if (each->ring.has_news()) return true;
        }
        const std::uint64_t now = signals.load();
        return std::exchange(seen, now) != now;
    }

    bool wait(double spin_seconds, double sleep_seconds) {
        const py::gil_scoped_release nogil;
        if (spin_seconds > 0) {
            const std::uint64_t end =
                persia::monotonic_nanoseconds() + static_cast<std::uint64_t>(spin_seconds * 1e9);
            do {
                for (int i = 0; i < 32; ++i) {
                    if (news()) return true;
#if defined(__x86_64__)
                    __builtin_ia32_pause();
#endif
                }
            } while (persia::monotonic_nanoseconds() < end);
        }
        if (sleep_seconds <= 0) return news();
        persia::Sleep sleep(bells);
        if (news()) return true;
        sleep.until_rung(static_cast<std::uint64_t>(sleep_seconds * 1e9));
        return news();
    }

    void wake() {
        signals.fetch_add(1);
        for (persia::Bell* bell : bells) persia::ring(bell);
    }
};

constexpr const char* kProducer =
    R"(Knows where the next entry of a ring goes, and what its consumer was told. One thread uses it.

Shapes: data uint8 [ring bytes], the consumer's or a mirror of it; tail uint64 [1], own memory that the
consumer writes; words uint64 [ring bytes / 64] and bell uint64 [1], the consumer's. words and bell None:
out of reach, the caller announces what `take_held` says.)";

constexpr const char* kReserve =
    R"(Returns arrays to fill in place, one for each (dtype, shape) of `specs`; `commit` sends them.

None if there is no room now, or the record would travel in chunks.
Raises: ValueError as `Outgoing` does.)";

constexpr const char* kConsumer = R"(Knows what of a ring was read and released. One thread uses it.

Shapes: data uint8 [ring bytes], words uint64 [ring bytes / 64], own memory that the producer writes; tail
uint64 [1] and bell uint64 [1], the producer's. tail and bell None: out of reach, the caller sends
`released`.)";

constexpr const char* kPoll =
    R"(Returns the next whole record: kind, step, trainer, tag, arrays and the token for `release`.

None: nothing came, or part of a record, or CLOSE.
Raises: RuntimeError for what the producer can't have sent.)";

constexpr const char* kPeek =
    R"(Returns (step, trainer) of the next record if it is of this kind and whole, else None.)";

constexpr const char* kOutgoing =
    R"(Holds a record that a ring is to carry, with its arrays: they must not change until it is written.

arrays: C-contiguous, one or two dimensions; an entry that is a list is sent as the concatenation of its
arrays along axis 0. kind, step, trainer and tag: 16, 64, 32 and 64 bits without sign.
Raises: ValueError for arrays or fields that a record can't carry.)";

constexpr const char* kNext =
    R"(Returns the position of the first ring from `begin` on with an entry, else their number.

Does for the others what a poll in vain does.)";

constexpr const char* kFillFrom =
    R"(Takes the records of these fields that lie next, whole, in rings of this node.

Copies their rows as `Shares.fill` does; returns the positions of their rings, and the largest tag. tag: None
for any.
Raises: ValueError for arrays of other sizes, RuntimeError for what the producer can't have sent.)";

constexpr const char* kPostEach = R"(Sends each ring a record with its server's part of each array.

producers: None for those that must not be written to now. Returns (position, record) of these, and of those
that could not be written whole.
Raises: ValueError as `Outgoing` does, and for arrays for another number of servers.)";

}  // namespace

void bind_ring(py::module_& m) {
    py::class_<Outgoing>(m, "Outgoing", kOutgoing)
        .def(py::init(&make_outgoing), py::arg("kind"), py::arg("step"), py::arg("trainer"), py::arg("tag"),
             py::arg("arrays"), "Checks the record; copies nothing.")
        .def_property_readonly(
            "unwritten_bytes",
            [](const Outgoing& self) { return self.message.layout.body_bytes - self.message.written; },
            "Body bytes that are not in the ring yet.");
    py::class_<Producer>(m, "RingProducer", kProducer)
        .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&>(),
             py::arg("data"), py::arg("tail"), py::arg("words"), py::arg("bell"),
             "Starts at the ring's begin.")
        .def("write", &Producer::write, py::arg("record"),
             "Writes what has room (without `words`: one entry); True once the record is complete.")
        .def("reserve", &Producer::reserve, py::arg("kind"), py::arg("step"), py::arg("trainer"),
             py::arg("tag"), py::arg("specs"), kReserve)
        .def(
            "commit", [](Producer& self) { self.ring.commit(); }, "Sends what was reserved.")
        .def(
            "cancel", [](Producer& self) { self.ring.cancel(); }, "Drops the reservation.")
        .def(
            "take_held",
            [](Producer& self) {
                const auto held = self.ring.take_held();
                return std::make_tuple(held.first, held.last, held.ranges);
            },
            "Returns the (first, last) entry not announced yet, and their bytes in the ring; announced from "
            "now on.")
        .def("close", &Producer::close, "Lets go of all memory; nothing may be written any more.")
        .def_readonly("data", &Producer::data, "The ring's memory.")
        .def_property_readonly(
            "reserved", [](const Producer& self) { return self.ring.reserved(); },
            "Whether a reservation is open.")
        .def_property_readonly(
            "held_entries", [](const Producer& self) { return self.ring.held_entries(); },
            "Entries written and not announced.")
        .def_property_readonly(
            "held_bytes", [](const Producer& self) { return self.ring.held_bytes(); }, "Their bytes.")
        .def_property_readonly(
            "max_entry", [](const Producer& self) { return self.ring.max_entry(); },
            "Bytes of the largest entry, with its header.")
        .def_property_readonly(
            "head", [](const Producer& self) { return self.ring.head(); },
            "Bytes written in all, with padding.")
        .def_property_readonly(
            "used", [](const Producer& self) { return self.ring.used(); },
            "Bytes that the consumer hasn't given back, as far as it has told.")
        .def_property_readonly(
            "records", [](const Producer& self) { return self.ring.records(); }, "Records sent.")
        .def_property_readonly(
            "bytes", [](const Producer& self) { return self.ring.bytes(); }, "Bytes of these, with headers.");
    py::class_<Consumer>(m, "RingConsumer", kConsumer)
        .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&>(),
             py::arg("data"), py::arg("words"), py::arg("tail"), py::arg("bell"),
             "Starts at the ring's begin.")
        .def("poll", &Consumer::poll, kPoll)
        .def("peek", &Consumer::peek_fields, py::arg("kind"), kPeek)
        .def("release", &Consumer::release, py::arg("token"),
             "Gives a record's memory back to the ring; in any order, each token once.")
        .def("close", &Consumer::close, "Lets go of all memory.")
        .def_readonly("data", &Consumer::data, "The ring's memory.")
        .def_readonly("words", &Consumer::words, "The sequence words.")
        .def_readonly("closed", &Consumer::closed, "Whether CLOSE was received, or `close` called.")
        .def_readonly("records", &Consumer::records, "Records received.")
        .def_property_readonly(
            "unread", [](const Consumer& self) { return self.partial.has_value() || self.ring.unread(); },
            "Whether a record other than CLOSE waits, or was received in part.")
        .def_property_readonly(
            "released", [](const Consumer& self) { return self.ring.released(); },
            "Bytes from the start of time that were released.")
        .def_property_readonly(
            "bytes", [](const Consumer& self) { return self.ring.bytes(); }, "Bytes received, with headers.");
    m.def("post_each", &post_each<Producer>, py::arg("producers"), py::arg("kind"), py::arg("step"),
          py::arg("trainer"), py::arg("tag"), py::arg("arrays"), kPostEach);
    using ConsumerGroup = Consumers<Consumer>;
    py::class_<ConsumerGroup>(m, "RingConsumers", "Looks at several rings at a time. One thread uses it.")
        .def(py::init<const std::vector<py::object>&>(), py::arg("consumers"), "Takes `RingConsumer`s.")
        .def("next", &ConsumerGroup::next, py::arg("begin"), kNext)
        .def("fill", &ConsumerGroup::fill, py::arg("kind"), py::arg("step"), py::arg("trainer"),
             py::arg("tag"), py::arg("shares"), py::arg("into"), py::arg("before"), kFillFrom);
    py::class_<Watch>(
        m, "Watch",
        "Waits until there are news for one loop: entries, or room for a record that found none, or `wake`.")
        .def(py::init<const std::vector<py::object>&, const std::vector<py::object>&,
                      const std::vector<py::object>&>(),
             py::arg("producers"), py::arg("consumers"), py::arg("bells"),
             "Takes bells uint64 [1] each: words in this rank's memory by which its peers can end its sleep.")
        .def(
            "wait", &Watch::wait, py::arg("spin_seconds"), py::arg("sleep_seconds"),
            "Spins, then sleeps once; returns whether there are news. May return early; the GIL is released.")
        .def("wake", &Watch::wake, "Ends, from another thread, the wait that is under way or the next one.");
}
