#include "persia/admission.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "check.h"

using namespace persia;

namespace {

constexpr std::uint32_t kBuckets = 4;
const BucketOf bucket_of(kBuckets);

AdmissionOptions after(std::uint32_t count) { return {count, 1}; }

void everything_is_admitted_by_default() {
    Admission admission({}, 1, kBuckets, 100);
    for (std::uint64_t i = 0; i < 1000; ++i) {
        const Key key = mix(i);
        CHECK(admission.admits(bucket_of(key), key, 1));
    }
    CHECK(admission.cells() == 0);
}

// So few keys that hardly two share both cells: then it is exact, and else it may only count too high.
void keys_come_in_after_as_many_steps_as_asked(std::uint32_t needed, std::uint64_t num_keys, double exact) {
    Admission admission(after(needed), 3, kBuckets, 1000);
    std::map<Key, std::set<std::uint32_t>> seen;  // steps, also of a pull that admits
    std::mt19937_64 random(needed);
    std::uint64_t decisions = 0, as_expected = 0;
    for (std::uint32_t step = 1; step < 6 * needed; ++step) {
        for (std::uint64_t i = 0; i < 2 * num_keys; ++i) {
            const Key key = mix(random() % num_keys);
            std::set<std::uint32_t>& steps = seen[key];
            const std::size_t before = steps.size() - steps.count(step);
            const bool admitted = admission.admits(bucket_of(key), key, step);
            const bool expected = before + 1 >= needed;
            CHECK(admitted || !expected);  // never too low
            ++decisions;
            as_expected += admitted == expected;
            steps.insert(step);
        }
        admission.count_sightings(step, bucket_of, 0);
    }
    CHECK(static_cast<double>(as_expected) >= exact * static_cast<double>(decisions));
}

// Neither the order within a step nor repetitions nor when a step's end comes after a later pull.
void order_within_a_step_does_not_matter() {
    std::mt19937_64 random(5);
    Admission a(after(4), 9, kBuckets, 30), b(after(4), 9, kBuckets, 30);
    for (std::uint32_t step = 1; step < 60; ++step) {
        std::vector<Key> keys;
        for (int i = 0; i < 200; ++i) keys.push_back(mix(random() % 500));
        std::map<Key, bool> admitted;
        for (const Key key : keys) admitted[key] = a.admits(bucket_of(key), key, step);
        std::shuffle(keys.begin(), keys.end(), random);
        keys.insert(keys.end(), keys.begin(), keys.begin() + 50);
        for (const Key key : keys) CHECK(b.admits(bucket_of(key), key, step) == admitted[key]);
        a.count_sightings(step, bucket_of, 0);
        b.count_sightings(step, bucket_of, 0);
    }
}

void sightings_of_later_steps_wait_for_their_own() {
    Admission admission(after(2), 1, 1, 100);
    const Key key = mix(7);
    CHECK(!admission.admits(0, key, 5));
    admission.count_sightings(4, BucketOf(1), 0);
    CHECK(!admission.admits(0, key, 5));
    admission.count_sightings(5, BucketOf(1), 0);
    CHECK(admission.admits(0, key, 6));
}

// Buckets have their numbers among all servers' buckets.
void shards_count_for_their_own_buckets() {
    constexpr std::uint32_t kFirst = 2;
    Admission admission(after(2), 1, kBuckets - kFirst, 100);
    std::vector<Key> keys;
    for (std::uint64_t i = 0; keys.size() < 40; ++i) {
        if (bucket_of(mix(i)) >= kFirst) keys.push_back(mix(i));
    }
    for (const Key key : keys) CHECK(!admission.admits(bucket_of(key) - kFirst, key, 1));
    admission.count_sightings(1, bucket_of, kFirst);
    for (const Key key : keys) CHECK(admission.admits(bucket_of(key) - kFirst, key, 2));
}

void counts_are_halved_in_time() {
    Admission admission(after(100), 1, 1, 1);
    CHECK(admission.cells() == 64);
    const Key key = mix(1);
    const auto see = [&](std::uint32_t times) {
        static std::uint32_t step = 0;
        for (std::uint32_t i = 0; i < times; ++i) {
            CHECK(!admission.admits(0, key, ++step));
            admission.count_sightings(step, BucketOf(1), 0);
        }
    };
    const auto count = [&] {
        std::uint32_t counted = 0;
        std::vector<std::uint8_t> counts;
        admission.begin_snapshot();
        admission.take_snapshot(0, counted, counts);
        admission.end_snapshot();
        return std::pair(counted, *std::max_element(counts.begin(), counts.end()));
    };
    see(63);
    CHECK(count() == std::pair(63u, std::uint8_t{63}));
    see(1);
    CHECK(count() == std::pair(0u, std::uint8_t{32}));
    see(64);
    CHECK(count() == std::pair(0u, std::uint8_t{48}));
}

void lots_are_drawn_once(double probability) {
    Admission admission({1, probability}, 11, kBuckets, 100), same({1, probability}, 11, kBuckets, 7);
    Admission other({1, probability}, 12, kBuckets, 100);
    constexpr int kKeys = 40000;
    int admitted = 0, different = 0;
    for (std::uint64_t i = 0; i < kKeys; ++i) {
        const Key key = mix(i);
        const bool first = admission.admits(bucket_of(key), key, 1);
        CHECK(admission.admits(bucket_of(key), key, 99) == first);
        CHECK(same.admits(bucket_of(key), key, 3) == first);
        different += other.admits(bucket_of(key), key, 1) != first;
        admitted += first;
    }
    const double expected = probability * kKeys, sigma = std::sqrt(expected * (1 - probability));
    CHECK(std::fabs(admitted - expected) < 5 * sigma);
    CHECK(std::fabs(different - 2 * expected * (1 - probability)) < 10 * sigma);
}

// A snapshot's counts are those of its mark, and a table that restores them decides like the one at the mark.
void snapshots_hold_the_counts_of_their_mark() {
    std::mt19937_64 random(8);
    const auto train = [&](Admission& admission, std::uint32_t begin, std::uint32_t end) {
        for (std::uint32_t step = begin; step < end; ++step) {
            for (int i = 0; i < 100; ++i) {
                const Key key = mix(random() % 300);
                admission.admits(bucket_of(key), key, step);
            }
            admission.count_sightings(step, bucket_of, 0);
        }
    };
    Admission admission(after(5), 2, kBuckets, 60), restored(after(5), 2, kBuckets, 60);
    train(admission, 1, 15);
    std::map<Key, bool> decisions;
    for (std::uint64_t i = 0; i < 300; ++i) {
        decisions[mix(i)] = admission.admits(bucket_of(mix(i)), mix(i), 1000);
    }
    admission.begin_snapshot();
    for (std::uint32_t bucket = 0; bucket < kBuckets; ++bucket) {
        train(admission, 15 + bucket, 16 + bucket);  // before and between the copies
        std::uint32_t counted = 0;
        std::vector<std::uint8_t> counts;
        admission.take_snapshot(bucket, counted, counts);
        CHECK(counts.size() == admission.cells());
        restored.restore(bucket, counted, counts);
    }
    admission.end_snapshot();
    std::size_t admitted = 0, changed = 0;
    for (const auto& [key, decision] : decisions) {
        CHECK(restored.admits(bucket_of(key), key, 2000) == decision);
        admitted += decision;
        changed += admission.admits(bucket_of(key), key, 2000) != decision;
    }
    CHECK(admitted > 10 && admitted < 290 && changed > 10);  // else it shows nothing
    CHECK_THROWS(std::invalid_argument, restored.restore(0, 0, std::vector<std::uint8_t>(3)));
}

void wrong_options_are_refused() {
    for (const std::uint32_t count : {0u, 256u}) {
        CHECK_THROWS(std::invalid_argument, Admission(after(count), 0, 1, 1));
    }
    for (const double probability : {0.0, -0.1, 1.1, std::nan("")}) {
        CHECK_THROWS(std::invalid_argument, Admission({1, probability}, 0, 1, 1));
    }
}

}  // namespace

int main() {
    everything_is_admitted_by_default();
    keys_come_in_after_as_many_steps_as_asked(2, 50, 0.99);
    keys_come_in_after_as_many_steps_as_asked(5, 50, 0.99);
    keys_come_in_after_as_many_steps_as_asked(
        3, 2000, 0.993);  // keys in common cells: with one cell a key it would be less
    order_within_a_step_does_not_matter();
    sightings_of_later_steps_wait_for_their_own();
    shards_count_for_their_own_buckets();
    counts_are_halved_in_time();
    for (const double probability : {0.05, 0.5, 0.9}) lots_are_drawn_once(probability);
    snapshots_hold_the_counts_of_their_mark();
    wrong_options_are_refused();
}
