#include <thread>

#include "check.h"
#include "ring_support.h"

using namespace persia;

namespace {

constexpr std::uint64_t kLongSleep = 60'000'000'000;  // ns; a wake-up that was lost would last that long

template <class HasNews>
void sleep_until(Bell& bell, const HasNews& has_news) {
    const std::vector<Bell*> bells{&bell};
    const std::uint64_t begin = monotonic_nanoseconds();
    Sleep sleep(bells);
    if (has_news()) return;
    sleep.until_rung(kLongSleep);
    CHECK(monotonic_nanoseconds() - begin < kLongSleep);
}

void produce(Memory& memory, std::uint64_t seed, std::uint64_t num_records, std::uint64_t most_bytes) {
    RingProducer producer = memory.producer();
    std::mt19937_64 random(seed);
    for (std::uint64_t n = 0; n < num_records; ++n) {
        const Record record(seed, n, most_bytes);
        if (random() % 2 == 0) {
            if (std::uint8_t* const body = producer.reserve(record.fields, record.layout)) {
                record.fill(body);
                producer.commit();
                continue;
            }
        }
        Message message = record.message();
        while (!message.complete()) {
            if (producer.write(message)) continue;
            sleep_until(memory.producer_bell, [&] { return producer.has_news(); });
        }
    }
    CHECK(producer.held_entries() == 0 && producer.held_bytes() == 0);
}

// Entries are released in random order, some only when there is nothing to read: a producer that waits for
// room then finds it, though the consumer never says more of its tail than release() does.
void consume(Memory& memory, std::uint64_t seed, std::uint64_t num_records, std::uint64_t most_bytes) {
    RingConsumer consumer = memory.consumer();
    std::mt19937_64 random(seed + 1);
    std::vector<std::uint64_t> unreleased;
    const auto release_one = [&] {
        std::swap(unreleased[random() % unreleased.size()], unreleased.back());
        consumer.release(unreleased.back());
        unreleased.pop_back();
    };
    std::uint64_t chunks = 0;
    std::vector<std::uint8_t> body;
    for (std::uint64_t n = 0; n < num_records;) {
        RingConsumer::Entry entry;
        if (!consumer.next(entry)) {
            if (!unreleased.empty()) {
                release_one();
            } else {
                sleep_until(memory.consumer_bell, [&] { return consumer.has_news(); });
            }
            continue;
        }
        CHECK(entry.header.chunk_begin == body.size());
        body.insert(body.end(), entry.body, entry.body + entry.header.chunk_bytes);
        unreleased.push_back(entry.number);
        while (unreleased.size() > random() % 4) release_one();
        ++chunks;
        if (body.size() < entry.header.body_bytes) continue;
        Record(seed, n, most_bytes).expect(entry.header, body);
        body.clear();
        ++n;
    }
    while (!unreleased.empty()) release_one();
    CHECK(chunks == consumer.next_number() - 1);
    CHECK(most_bytes < memory.ring_bytes || chunks > num_records + num_records / 20);
    CHECK(consumer.released() > 20 * memory.ring_bytes);  // so it went round many times
    CHECK(!consumer.unread() && !consumer.has_news());
}

void threads_pass_records(std::uint64_t ring_bytes, std::uint64_t most_bytes, std::uint64_t num_records,
                          std::uint64_t seed) {
    Memory memory(ring_bytes);
    std::thread producer([&] { produce(memory, seed, num_records, most_bytes); });
    consume(memory, seed, num_records, most_bytes);
    producer.join();
}

}  // namespace

int main() {
    for (std::uint64_t seed = 0; seed < 4; ++seed) {
        threads_pass_records(1024, 3000, 2000, seed);
        threads_pass_records(4096, 1000, 3000, seed);
        threads_pass_records(65536, 200000, 300, seed);
    }
}
