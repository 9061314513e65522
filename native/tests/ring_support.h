// What tests of the ring share: its memory, and records that both ends make.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "persia/aligned_array.h"
#include "persia/ring.h"

namespace persia {

// What the two ends share; each rings the other's bell.
struct Memory {
    explicit Memory(std::uint64_t ring_bytes)
        : ring_bytes(ring_bytes), data(ring_bytes), words(ring_bytes / kLine, 0) {
        std::memset(data.data(), 0xee, ring_bytes);
    }
    RingProducer producer() { return {data, &tail, words, &consumer_bell}; }
    RingConsumer consumer() { return {data, words, &tail, &producer_bell}; }

    std::uint64_t ring_bytes;
    AlignedArray<std::uint8_t> data;
    std::vector<std::uint64_t> words;
    alignas(64) std::uint64_t tail = 0;
    alignas(64) Bell producer_bell{};
    alignas(64) Bell consumer_bell{};
};

// The n-th record of a seed: both ends make it, one to send it, the other to compare.
struct Record {
    Record(std::uint64_t seed, std::uint64_t n, std::uint64_t most_bytes) : fields{}, layout(0) {
        std::mt19937_64 random(seed * 1000003 + n);
        fields = {static_cast<std::uint16_t>(random() % 100), static_cast<std::uint32_t>(random()), random(),
                  random()};
        const std::size_t num_arrays = random() % 4;
        layout = BodyLayout(num_arrays);
        for (std::size_t i = 0; i < num_arrays; ++i) {
            const std::uint64_t most = random() % 8 == 0 ? most_bytes : most_bytes / 50 + 1;
            const std::uint64_t columns = 1 + random() % 3, rows = random() % (most / columns + 1);
            layout.add({static_cast<std::uint32_t>(i), 2, rows, columns}, 1);
            arrays.emplace_back(rows * columns);
            for (std::uint8_t& byte : arrays.back()) byte = static_cast<std::uint8_t>(random());
        }
    }
    Message message() const {
        Message message;
        message.fields = fields;
        message.layout = layout;
        for (std::size_t i = 0; i < arrays.size(); ++i) {
            message.pieces.push_back({arrays[i].data(), layout.offsets[i], arrays[i].size()});
        }
        return message;
    }
    void fill(std::uint8_t* body) const {
        for (std::size_t i = 0; i < arrays.size(); ++i) {
            if (!arrays[i].empty()) std::memcpy(body + layout.offsets[i], arrays[i].data(), arrays[i].size());
        }
    }
    void expect(const EntryHeader& header, const std::vector<std::uint8_t>& body) const {
        CHECK(header.kind == fields.kind && header.trainer == fields.trainer);
        CHECK(header.step == fields.step && header.tag == fields.tag);
        CHECK(header.num_arrays == arrays.size());
        CHECK(body.size() == layout.body_bytes);
        for (std::size_t i = 0; i < arrays.size(); ++i) {
            ArrayEntry entry;
            std::memcpy(&entry, body.data() + i * sizeof entry, sizeof entry);
            CHECK(entry.dtype == i && entry.rows * entry.columns == arrays[i].size());
            CHECK(std::equal(arrays[i].begin(), arrays[i].end(),
                             body.begin() + static_cast<std::ptrdiff_t>(layout.offsets[i])));
        }
    }

    RecordFields fields;
    BodyLayout layout;
    std::vector<std::vector<std::uint8_t>> arrays;
};

}  // namespace persia
