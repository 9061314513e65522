#include "persia/node_sum.h"

#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

constexpr std::uint64_t kSleep = 5'000'000'000;  // ns; a wake-up that was lost would show as a slow test

struct Node {
    std::vector<std::vector<std::uint8_t>> memory;
    std::vector<Span<std::uint8_t>> members;

    Node(std::size_t ranks, const std::vector<std::size_t>& lengths, Wire wire) {
        for (std::size_t r = 0; r < ranks; ++r) {
            const std::size_t bytes = NodeSum::bytes(lengths, wire, r == 0);
            memory.emplace_back(bytes + 64);
            auto begin = reinterpret_cast<std::uintptr_t>(memory.back().data());
            const std::size_t shift = (64 - begin % 64) % 64;
            members.emplace_back(memory.back().data() + shift, bytes);
        }
    }
};

// What rank r puts into element i in a round.
float value(std::size_t round, std::size_t r, std::size_t i) {
    const auto mixed = static_cast<std::uint32_t>(round * 7919 + r * 104729 + i) * 2654435761u;
    return (static_cast<float>(mixed >> 8) - 8388608.0f) * 1e-5f;
}

template <typename W>
float rounded(float x) {
    std::byte bytes[4];
    float back;
    W::encode(&x, bytes, 1);
    W::decode(bytes, &back, 1);
    return back;
}

// Threads stand for ranks: each round all get the sums in the order of ranks, to the bit.
template <typename W>
void every_rank_gets_the_sum(Wire wire, std::size_t ranks, const std::vector<std::size_t>& lengths,
                             bool published) {
    constexpr std::size_t kRounds = 5;
    Node node(ranks, lengths, wire);
    std::size_t total = 0;
    for (const std::size_t length : lengths) total += length;
    const auto run = [&](std::size_t rank) {
        NodeSum sums(node.members, rank, lengths, wire);
        auto* const slots = reinterpret_cast<std::byte*>(node.members[rank].data() + NodeSum::slots_offset());
        auto* const result =
            reinterpret_cast<float*>(node.members[0].data() + NodeSum::sums_offset(lengths, wire));
        for (std::size_t round = 0; round < kRounds; ++round) {
            std::size_t at = 0;
            for (const std::size_t length : lengths) {
                for (std::size_t i = at; i < at + length; ++i) {
                    const float x = value(round, rank, i);
                    W::encode(&x, slots + W::bytes(i), 1);
                }
                at += length;
                sums.post();
            }
            at = 0;
            for (std::size_t b = 0; b < lengths.size(); ++b) {
                const std::uint64_t number = round * lengths.size() + b;
                if (published && rank != 0) {
                    while (!sums.wait_published(number, 0, kSleep)) {
                    }
                } else {
                    while (!sums.wait_summed(number, 1000 * (rank % 2), kSleep)) {
                    }
                    CHECK(sums.summed(number));
                    for (std::size_t i = at; published && i < at + lengths[b]; ++i) result[i] += 1;
                    if (published) sums.publish();
                }
                for (std::size_t i = at; i < at + lengths[b]; ++i) {
                    float expected = rounded<W>(value(round, 0, i));
                    for (std::size_t r = 1; r < ranks; ++r) expected += rounded<W>(value(round, r, i));
                    CHECK(bits_of(result[i]) == bits_of(published ? expected + 1 : expected));
                }
                at += lengths[b];
            }
        }
    };
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < ranks; ++r) threads.emplace_back(run, r);
    for (std::thread& thread : threads) thread.join();
}

void a_sum_waits_for_all() {
    const std::vector<std::size_t> lengths{3};
    Node node(2, lengths, Wire::kFp32);
    NodeSum first(node.members, 0, lengths, Wire::kFp32), second(node.members, 1, lengths, Wire::kFp32);
    CHECK(!first.summed(0));
    first.post();
    CHECK(!first.summed(0) && !first.wait_summed(0, 1000, 1000));
    CHECK(!second.summed(0));
    second.post();  // the last one sums, without the other
    CHECK(first.summed(0) && second.summed(0) && !first.summed(1));
    CHECK(!second.wait_published(0, 0, 1000));
    first.publish();
    CHECK(second.wait_published(0, 0, 0) && !second.wait_published(1, 0, 0));
}

void bad_arguments_are_refused() {
    const std::vector<std::size_t> lengths{3};
    Node node(2, lengths, Wire::kFp32);
    CHECK_THROWS(std::invalid_argument, NodeSum(node.members, 2, lengths, Wire::kFp32));
    CHECK_THROWS(std::invalid_argument, NodeSum(node.members, 0, {}, Wire::kFp32));
    CHECK_THROWS(std::invalid_argument, NodeSum(node.members, 0, {3, 0}, Wire::kFp32));
    CHECK_THROWS(std::invalid_argument, NodeSum(node.members, 0, {4}, Wire::kFp32));
    CHECK_THROWS(std::invalid_argument, NodeSum(node.members, 0, lengths, Wire::kScaledFp16));
    auto shifted = node.members;
    shifted[1] = {shifted[1].data() + 8, shifted[1].size()};
    CHECK_THROWS(std::invalid_argument, NodeSum(shifted, 0, lengths, Wire::kFp32));
}

}  // namespace

int main() {
    const std::size_t chunk = NodeSum::kChunk;
    for (const bool published : {false, true}) {
        every_rank_gets_the_sum<WireFp32>(Wire::kFp32, 1, {5}, published);
        every_rank_gets_the_sum<WireFp32>(Wire::kFp32, 2, {1, 3000, 7}, published);
        every_rank_gets_the_sum<WireFp32>(Wire::kFp32, 4, {2, chunk + 5}, published);
        every_rank_gets_the_sum<WireFp16>(Wire::kFp16, 3, {17, 2049}, published);
        every_rank_gets_the_sum<WireBf16>(Wire::kBf16, 3, {chunk, 33}, published);
    }
    a_sum_waits_for_all();
    bad_arguments_are_refused();
    return 0;
}
