#include "persia/shard.h"

#include <numeric>

#include "check.h"
#include "table_model.h"

using namespace persia;

namespace {

constexpr std::uint32_t kDim = 4;

// Buckets [2, 6) of 8.
TableConfig config_here() {
    TableConfig config;
    config.dim = kDim;
    config.optimizer = "adagrad";
    config.options = {{"lr", 0.1}};
    config.init = "normal";
    config.init_b = 0.1;
    config.num_buckets = 8;
    config.first_bucket = 2;
    config.end_bucket = 6;
    config.bucket_capacity = 3;
    return config;
}

std::vector<Key> keys_of(std::uint32_t bucket, std::size_t n) {
    const BucketOf bucket_of(8);
    std::vector<Key> keys;
    for (std::uint64_t id = 0; keys.size() < n; ++id) {
        if (bucket_of(mix(id)) == bucket) keys.push_back(mix(id));
    }
    std::sort(keys.begin(), keys.end());
    return keys;
}

Pulled pull(Shard& shard, const std::vector<Key>& keys, std::uint32_t step) {
    Pulled pulled{keys, std::vector<float>(keys.size() * kDim, -1.0f),
                  std::vector<std::uint32_t>(keys.size())};
    pulled.epoch = shard.epoch();
    shard.pull(keys, step, as_fp32(pulled.rows, keys.size()), pulled.slots, {});
    return pulled;
}

std::vector<float> lookup(const Shard& shard, const std::vector<Key>& keys) {
    std::vector<float> rows(keys.size() * kDim, -1.0f);
    shard.lookup(keys, as_fp32(rows, keys.size()));
    return rows;
}

std::vector<float> gradients_for(const Pulled& pulled, float value = 1) {
    return std::vector<float>(pulled.rows.size(), value);
}

std::vector<float> row(const std::vector<float>& rows, std::size_t i) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(i * kDim);
    return {begin, begin + kDim};
}

std::vector<float> zeros(std::size_t n) { return std::vector<float>(n * kDim, 0.0f); }

void buckets_have_the_numbers_of_all_servers() {
    Shard shard(config_here());
    for (std::uint32_t bucket = 0; bucket < 8; ++bucket) {
        const bool here = bucket >= 2 && bucket < 6;
        CHECK(shard.owns_bucket(bucket) == here && shard.owns(keys_of(bucket, 1)[0]) == here);
        if (!here) continue;
        const std::vector<Key> keys = keys_of(bucket, 2);
        const Pulled pulled = pull(shard, keys, 5);
        const ExportedRows rows = shard.export_bucket(bucket);
        CHECK(rows.keys == keys && same_bits(rows.rows, pulled.rows));
        CHECK(rows.stamps == std::vector<std::uint32_t>(2, 5));
    }
    CHECK(shard.counts().created == 8);
}

// A slot that was given to another row since, or to the same key's new row, takes no gradient of the old one.
void late_gradients_reach_no_other_row() {
    Shard shard(config_here());
    const std::vector<Key> keys = keys_of(3, 9);
    const std::vector<Key> old(keys.begin(), keys.begin() + 3), young(keys.begin() + 3, keys.begin() + 6);
    const Pulled first = pull(shard, old, 1);
    pull(shard, young, 2);
    CHECK(shard.evict(2) == 3);
    CHECK(same_bits(lookup(shard, old), zeros(3)));
    const std::vector<Key> both{old[0], keys[7]};
    const Pulled second = pull(shard, both, 3);
    for (const std::uint32_t slot : second.slots) {  // so it is the case that is meant
        CHECK(std::count(first.slots.begin(), first.slots.end(), slot) == 1);
    }
    const std::vector<float> gradients = gradients_for(first);
    CHECK(same_counts(shard.push(batch_of(first, gradients), 3), {0, 3, 0, 0}));
    CHECK(same_counts(shard.push_step({batch_of(first, gradients)}, 3), {0, 3, 0, 0}));
    CHECK(same_bits(lookup(shard, both), second.rows));
    CHECK(same_counts(shard.push(batch_of(second, gradients_for(second)), 3), {2, 0, 0, 0}));
    CHECK(!same_bits(lookup(shard, both), second.rows));
    CHECK(shard.counts().evicted == 3);
}

void rows_over_their_time_begin_anew() {
    TableConfig config = config_here();
    config.ttl = 2;
    Shard shard(config);
    const std::vector<Key> keys = keys_of(4, 2);
    const Pulled first = pull(shard, keys, 1);
    CHECK(shard.push(batch_of(first, gradients_for(first)), 1).applied == 2);
    const std::vector<float> trained = lookup(shard, keys);
    for (std::uint32_t step = 1; step <= 2; ++step) shard.evict(step);
    const std::vector<Key> one{keys[0]};
    CHECK(same_bits(pull(shard, one, 3).rows, row(trained, 0)));
    shard.evict(3);
    CHECK(same_bits(lookup(shard, {keys[1]}), zeros(1)));  // whether it was swept away or not
    CHECK(shard.export_bucket(4).keys == one);
    const Pulled again = pull(shard, keys, 4);
    CHECK(same_bits(row(again.rows, 0), row(trained, 0)));
    CHECK(same_bits(row(again.rows, 1), row(first.rows, 1)));
    CHECK(same_counts(shard.push(batch_of(first, gradients_for(first)), 4), {1, 1, 0, 0}));
    for (std::uint32_t step = 5; step < 200; ++step) shard.evict(step);
    CHECK(shard.counts().evicted == 3 && shard.rows_since(4, 0) == 0);  // swept in the end
}

void unadmitted_keys_are_zeros_without_a_slot() {
    TableConfig config = config_here();
    config.admission.after = 2;
    Shard shard(config);
    const std::vector<Key> keys = keys_of(2, 3);
    const Pulled first = pull(shard, keys, 1);
    CHECK(same_bits(first.rows, zeros(3)) && first.slots == std::vector<std::uint32_t>(3, kNoSlot));
    CHECK(same_counts(shard.push(batch_of(first, gradients_for(first)), 1), {0, 0, 3, 0}));
    CHECK(same_counts(shard.push_step({batch_of(first, gradients_for(first))}, 1), {0, 0, 3, 0}));
    shard.evict(1);
    const Pulled second = pull(shard, keys, 2);
    CHECK(std::count(second.slots.begin(), second.slots.end(), kNoSlot) == 0);
    CHECK(!same_bits(second.rows, zeros(3)) && shard.counts().created == 3);
}

// A row that several batches have gets one update with their sum; one that overflows only there, none.
void batches_of_a_step_are_summed() {
    Shard together(config_here()), alone(config_here());
    const std::vector<Key> keys = keys_of(5, 3);
    const Pulled a = pull(together, keys, 1), b = pull(together, {keys[1], keys[2]}, 1),
                 c = pull(alone, keys, 1);
    std::vector<float> ga = gradients_for(a, 0.5f), gb = gradients_for(b, 0.25f), sum = ga;
    for (std::size_t i = 0; i < gb.size(); ++i) sum[i + kDim] += gb[i];
    ga.back() = gb.back() = sum.back() = 3e38f;
    CHECK(same_counts(together.push_step({batch_of(a, ga), batch_of(b, gb)}, 1), {3, 0, 0, 2}));
    sum.back() = std::nanf("");
    CHECK(same_counts(alone.push(batch_of(c, sum), 1), {2, 0, 0, 1}));
    CHECK(same_bits(lookup(together, keys), lookup(alone, keys)));
    CHECK(!same_bits(lookup(together, keys), c.rows));
}

// What was exported makes the same shard elsewhere, with other buckets: each takes its own.
void imported_rows_go_on_as_they_were() {
    TableConfig config = config_here();
    config.optimizer = "adam";
    config.bucket_capacity = 50;
    Shard whole(config);
    std::mt19937_64 random(1);
    std::vector<Key> keys;
    for (const Key key : some_keys(random, 200, 1000)) {
        if (whole.owns(key)) keys.push_back(key);
    }
    for (std::uint32_t step = 1; step < 4; ++step) {
        const Pulled pulled = pull(whole, keys, step);
        whole.push(batch_of(pulled, some_gradients(random, pulled.rows.size())), step);
        whole.evict(step);
    }
    TableConfig left = config, right = config;
    left.end_bucket = right.first_bucket = 3;
    Shard parts[] = {Shard(left), Shard(right)};
    for (std::uint32_t bucket = 2; bucket < 6; ++bucket) {
        const ExportedRows rows = whole.export_bucket(bucket);
        for (Shard& part : parts) part.import_rows(imported(rows));
    }
    CHECK(parts[0].counts().imported + parts[1].counts().imported == keys.size());
    const std::vector<float> gradients = some_gradients(random, keys.size() * kDim);
    const Pulled pulled = pull(whole, keys, 9);
    whole.push(batch_of(pulled, gradients), 9);
    std::size_t begin = 0;
    for (Shard& part : parts) {
        std::vector<Key> own;
        for (const Key key : keys) {
            if (part.owns(key)) own.push_back(key);
        }
        const Pulled here = pull(part, own, 9);
        const auto at = gradients.begin() + static_cast<std::ptrdiff_t>(begin * kDim);
        part.push(batch_of(here, {at, at + static_cast<std::ptrdiff_t>(own.size() * kDim)}), 9);
        begin += own.size();
    }
    CHECK(begin == keys.size());
    for (std::uint32_t bucket = 2; bucket < 6; ++bucket) {
        CHECK(same_rows(parts[bucket >= 3].export_bucket(bucket), whole.export_bucket(bucket)));
    }
}

// Gradients of pulls before an import are not for the rows that it brought; without state rows begin anew.
void import_replaces_rows() {
    Shard shard(config_here());
    const std::vector<Key> keys = keys_of(2, 2);
    const Pulled before = pull(shard, keys, 1);
    shard.push(batch_of(before, gradients_for(before)), 1);
    ExportedRows rows = shard.export_bucket(2);
    std::iota(rows.rows.begin(), rows.rows.end(), 1.0f);
    rows.stamps = {7, 8};
    ImportedRows anew = imported(rows);
    anew.has_state = false;
    shard.import_rows(anew);
    CHECK(shard.counts().imported == 0);  // they were here
    CHECK(same_counts(shard.push(batch_of(before, gradients_for(before)), 1), {0, 2, 0, 0}));
    const ExportedRows after = shard.export_bucket(2);
    CHECK(same_bits(after.rows, rows.rows) && after.stamps == rows.stamps &&
          same_bits(after.state, zeros(2)));
    CHECK(shard.rows_since(2, 7) == 1);
}

// Rows and gradients travel in 16 bits too: these values have an exact form there.
void other_wires_carry_the_same() {
    for (const Wire wire : {Wire::kFp16, Wire::kBf16}) {
        Shard shard(config_here());
        const std::vector<Key> keys = keys_of(2, 3);
        ExportedRows rows;
        rows.keys = keys;
        rows.stamps.assign(3, 1);
        for (int i = 0; i < 12; ++i) rows.rows.push_back(static_cast<float>(i) / 4 - 1);
        ImportedRows anew = imported(rows);
        anew.has_state = false;
        shard.import_rows(anew);
        std::vector<std::byte> sent(3 * wire_bytes(wire, kDim));
        std::vector<std::uint32_t> slots(3);
        const std::uint32_t epoch = shard.epoch();
        shard.pull(keys, 2, {sent.data(), wire, 3}, slots, {});
        std::vector<float> received(12);
        for (std::size_t i = 0; i < 3; ++i) {
            decode_row(wire, sent.data() + i * wire_bytes(wire, kDim), &received[i * kDim], kDim);
        }
        CHECK(same_bits(received, rows.rows));
        // Each row back as its own gradient: Adagrad's first step is lr in the gradient's direction.
        shard.push({keys, slots, {sent.data(), wire, 3}, epoch}, 2);
        const std::vector<float> after = lookup(shard, keys);
        for (std::size_t i = 0; i < 12; ++i) {
            const float step = rows.rows[i] == 0 ? 0 : std::copysign(0.1f, rows.rows[i]);
            CHECK(std::fabs(after[i] - (rows.rows[i] - step)) < 1e-6f);
        }
    }
}

}  // namespace

int main() {
    buckets_have_the_numbers_of_all_servers();
    late_gradients_reach_no_other_row();
    rows_over_their_time_begin_anew();
    unadmitted_keys_are_zeros_without_a_slot();
    batches_of_a_step_are_summed();
    imported_rows_go_on_as_they_were();
    import_replaces_rows();
    other_wires_carry_the_same();
}
