#include "persia/ring.h"

#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "ring_support.h"

using namespace persia;

namespace {

Message empty_message(std::uint16_t kind) {
    Message message;
    message.fields = {kind, 0, 0, 0};
    return message;
}

// A record of one array of `bytes`: an entry of 128 bytes more, with its header and directory.
struct Plain {
    explicit Plain(std::uint64_t bytes) : content(bytes, 7) {
        message.fields = {3, 0, 0, 0};
        message.layout = BodyLayout(1);
        message.layout.add({0, 1, bytes, 1}, 1);
        message.pieces.push_back({content.data(), message.layout.offsets[0], bytes});
    }
    Plain(const Plain&) = delete;
    std::vector<std::uint8_t> content;
    Message message;
};

void full_ring_waits_for_its_consumer() {
    Memory memory(1024);
    RingProducer producer = memory.producer();
    RingConsumer consumer = memory.consumer();
    CHECK(producer.max_entry() == 384);
    for (int i = 0; i < 4; ++i) {
        Plain record(128);
        CHECK(producer.write(record.message) && record.message.complete());
    }
    Plain fifth(1);
    CHECK(!producer.write(fifth.message) && !fifth.message.begun);
    CHECK(producer.reserve(fifth.message.fields, fifth.message.layout) == nullptr);
    CHECK(!producer.has_news());
    CHECK(producer.records() == 4 && producer.bytes() == 1024 && producer.head() == 1024);
    CHECK(producer.used() == 1024);
    RingConsumer::Entry entry;
    for (std::uint64_t number = 1; number <= 4; ++number)
        CHECK(consumer.next(entry) && entry.number == number);
    CHECK(!consumer.next(entry));
    consumer.release(2);
    consumer.release(3);
    CHECK(consumer.released() == 0 && memory.tail == 0 && !producer.has_news());
    consumer.release(1);
    CHECK(consumer.released() == 768 && memory.tail == 768 && producer.has_news());
    CHECK(producer.used() == 1024 - 768);
    CHECK(producer.write(fifth.message) && !producer.has_news());
    CHECK(consumer.next(entry) && entry.number == 5 && entry.body == memory.data.data() + kLine);
}

// What is released goes to the tail by eighths of the ring, or when it is asked for.
void tail_is_published_by_eighths() {
    Memory memory(2048);
    RingProducer producer = memory.producer();
    RingConsumer consumer = memory.consumer();
    const auto pass = [&] {
        Message message = empty_message(1);
        RingConsumer::Entry entry;
        CHECK(producer.write(message) && message.complete() && consumer.next(entry));
        CHECK(entry.header.body_bytes == 0 && entry.header.chunk_bytes == 0);
        consumer.release(entry.number);
    };
    for (int i = 0; i < 3; ++i) pass();
    CHECK(memory.tail == 0 && consumer.released() == 192);
    pass();
    CHECK(memory.tail == 256);
    pass();
    CHECK(memory.tail == 256);
    consumer.publish_tail();
    CHECK(memory.tail == 320);
}

// An entry that would cross the ring's end begins at its start, whether it is sent or given up in between.
void wraps_and_cancels() {
    for (const bool cancel : {false, true}) {
        Memory memory(1024);
        RingProducer producer = memory.producer();
        RingConsumer consumer = memory.consumer();
        RingConsumer::Entry entry;
        for (int i = 0; i < 3; ++i) {
            Plain record(192);
            CHECK(producer.write(record.message) && consumer.next(entry));
            consumer.release(entry.number);
        }
        Plain record(64);  // fits exactly into the last 64 bytes and 128 more
        if (cancel) {
            CHECK(producer.reserve(record.message.fields, record.message.layout) ==
                  memory.data.data() + kLine);
            CHECK(producer.reserved());
            producer.cancel();
            CHECK(!producer.reserved() && !consumer.has_news() && !consumer.next(entry));
        }
        CHECK(producer.write(record.message) && consumer.next(entry));
        CHECK(entry.number == 4 && entry.body == memory.data.data() + kLine && entry.body[kLine] == 7);
        consumer.release(4);
        CHECK(consumer.released() == 1024 + 192 && producer.head() == 1024 + 192);
    }
}

void entry_that_ends_with_the_ring_needs_no_padding() {
    Memory memory(1024);
    RingProducer producer = memory.producer();
    RingConsumer consumer = memory.consumer();
    RingConsumer::Entry entry;
    for (int i = 0; i < 40; ++i) {
        Plain record(128);
        CHECK(producer.write(record.message) && consumer.next(entry));
        CHECK(entry.body == memory.data.data() + 256 * (i % 4) + kLine);
        consumer.release(entry.number);
    }
    CHECK(producer.head() == 40 * 256);
}

void reserves_only_what_fits_one_entry() {
    Memory memory(1024);
    RingProducer producer = memory.producer();
    const Plain fits(256), too_large(257);
    CHECK(producer.reserve(too_large.message.fields, too_large.message.layout) == nullptr);
    CHECK(producer.reserve(fits.message.fields, fits.message.layout) != nullptr);
}

void unread_does_not_count_close() {
    Memory memory(4096);
    RingProducer producer = memory.producer();
    RingConsumer consumer = memory.consumer();
    RingConsumer::Entry entry;
    CHECK(!consumer.unread());
    Message last = empty_message(1), close = empty_message(kCloseKind);
    CHECK(producer.write(last) && consumer.unread());
    CHECK(producer.write(close) && consumer.unread());
    CHECK(consumer.next(entry) && !consumer.unread() && consumer.has_news());
    CHECK(consumer.next(entry) && entry.header.kind == kCloseKind && !consumer.has_news());
    consumer.close();
    CHECK(!consumer.unread() && !consumer.has_news());
    CHECK_THROWS(RingError, consumer.next(entry));
}

// Damage is told, and a consumer that told it has changed nothing: with the damage repaired it reads on.
void damage_is_found() {
    Memory memory(1024);
    RingProducer producer = memory.producer();
    RingConsumer consumer = memory.consumer();
    RingConsumer::Entry entry;
    Plain record(100);
    CHECK(producer.write(record.message));
    const auto refuses = [&](void* at, const auto& wrong) {
        auto right = wrong;
        std::memcpy(&right, at, sizeof right);
        std::memcpy(at, &wrong, sizeof wrong);
        CHECK(consumer.has_news());
        CHECK_THROWS(RingError, consumer.next(entry));
        CHECK(consumer.next_number() == 1 && consumer.bytes() == 0);
        std::memcpy(at, &right, sizeof right);
    };
    std::uint8_t* const header = memory.data.data();
    refuses(&memory.words[1], std::uint64_t{2});
    refuses(header + offsetof(EntryHeader, magic), __builtin_bswap32(kRingMagic));
    refuses(header + offsetof(EntryHeader, version), std::uint16_t{kRingVersion + 1});
    refuses(header + offsetof(EntryHeader, sequence), std::uint64_t{2});
    refuses(header + offsetof(EntryHeader, chunk_bytes), std::uint64_t{1024});
    refuses(header + offsetof(EntryHeader, chunk_bytes), ~std::uint64_t{0});
    refuses(header + offsetof(EntryHeader, chunk_begin), std::uint64_t{1});
    refuses(header + offsetof(EntryHeader, chunk_begin), ~std::uint64_t{0});
    refuses(header + offsetof(EntryHeader, body_bytes), std::uint64_t{10});
    CHECK(consumer.next(entry) && entry.number == 1 && consumer.bytes() == 256);
}

void directories_are_checked() {
    CHECK(array_end({0, 2, 10, 3}, 4, 64, 184, 0) == 192);
    CHECK(array_end({0, 2, 0, 3}, 4, 64, 64, 0) == 64);
    CHECK_THROWS(RingError, array_end({0, 2, 10, 3}, 4, 64, 183, 0));
    CHECK_THROWS(RingError, array_end({0, 2, std::uint64_t{1} << 63, 2}, 1, 0, 1000, 0));
    CHECK_THROWS(RingError, array_end({0, 2, std::uint64_t{1} << 62, 1}, 4, 0, 1000, 0));
    CHECK_THROWS(RingError, array_end({0, 2, ~std::uint64_t{0}, 1}, 1, 64, 1000, 0));
}

// A producer on another node writes a mirror; what it holds back is copied, then announced, as MPI does it.
void mirrored_producer(std::uint64_t seed) {
    constexpr std::uint64_t kBytes = 2048, kRecords = 2000;
    Memory there(kBytes);
    AlignedArray<std::uint8_t> mirror(kBytes);
    RingProducer producer(mirror, &there.tail, {}, nullptr);
    RingConsumer consumer = there.consumer();
    std::mt19937_64 random(seed);
    std::uint64_t received = 0, sent_entries = 0;
    std::vector<std::uint8_t> body;
    const auto send_held = [&] {
        const std::uint64_t entries = producer.held_entries(), bytes = producer.held_bytes();
        const RingProducer::Held held = producer.take_held();
        CHECK(held.first == sent_entries + 1 && held.last == sent_entries + entries);
        CHECK(producer.held_entries() == 0 && producer.held_bytes() == 0);
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < held.ranges.size(); ++i) {
            const auto [begin, end] = held.ranges[i];
            CHECK(begin < end && end <= kBytes);
            CHECK(i == 0 || held.ranges[i - 1].second != begin);  // neighbours travel as one
            std::memcpy(there.data.data() + begin, mirror.data() + begin, end - begin);
            sum += end - begin;
        }
        CHECK(sum == bytes);
        for (std::uint64_t n = held.first; n <= held.last; ++n) there.words[n % there.words.size()] = n;
        sent_entries = held.last;
    };
    const auto receive = [&] {
        RingConsumer::Entry entry;
        while (consumer.next(entry)) {
            body.insert(body.end(), entry.body, entry.body + entry.header.chunk_bytes);
            consumer.release(entry.number);
            if (body.size() < entry.header.body_bytes) continue;
            Record(seed, received++, 1000).expect(entry.header, body);
            body.clear();
        }
        consumer.publish_tail();
    };
    for (std::uint64_t n = 0; n < kRecords; ++n) {
        const Record record(seed, n, 1000);
        Message message = record.message();
        while (!message.complete()) {
            const bool written = producer.write(message);
            CHECK(!consumer.has_news());  // until it is announced
            if (written && random() % 4 != 0) continue;
            send_held();
            receive();
        }
    }
    send_held();
    receive();
    CHECK(received == kRecords && consumer.released() == producer.head());
}

}  // namespace

int main() {
    full_ring_waits_for_its_consumer();
    tail_is_published_by_eighths();
    wraps_and_cancels();
    entry_that_ends_with_the_ring_needs_no_padding();
    reserves_only_what_fits_one_entry();
    unread_does_not_count_close();
    damage_is_found();
    directories_are_checked();
    for (std::uint64_t seed = 0; seed < 4; ++seed) mirrored_producer(seed);
}
