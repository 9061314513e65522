#include "persia/node_sum.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <utility>

namespace persia {

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kBlock = 2048;  // elements that are converted at a time
constexpr std::size_t kWord = sizeof(std::uint64_t);

std::size_t aligned(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

std::size_t element_bytes(Wire wire) { return wire == Wire::kFp32 ? 4 : 2; }

std::size_t total(const std::vector<std::size_t>& lengths) {
    std::size_t sum = 0;
    for (const std::size_t length : lengths) sum += length;
    return sum;
}

// A rank's memory begins with its bell and, in the next word, how many buckets it has posted.
Bell* bell_of(const Span<std::uint8_t>& member) { return reinterpret_cast<Bell*>(member.data()); }

std::uint64_t* posted_of(const Span<std::uint8_t>& member) {
    return reinterpret_cast<std::uint64_t*>(member.data() + kWord);
}

template <typename W>
void sum_into(float* out, const std::vector<const std::byte*>& parts, std::size_t n) {
    float block[kBlock];
    for (std::size_t at = 0; at < n; at += kBlock) {
        const std::size_t count = std::min(kBlock, n - at);
        float* const sums = out + at;
        W::decode(parts[0] + W::bytes(at), sums, count);
        for (std::size_t m = 1; m < parts.size(); ++m) {
            W::decode(parts[m] + W::bytes(at), block, count);
            for (std::size_t i = 0; i < count; ++i) sums[i] += block[i];
        }
    }
}

}  // namespace

std::size_t NodeSum::sums_offset(const std::vector<std::size_t>& lengths, Wire wire) {
    // Behind the slots: a line for each of published, taken and the buckets' counts.
    return slots_offset() + aligned(total(lengths) * element_bytes(wire)) + (2 + lengths.size()) * kLine;
}

std::size_t NodeSum::bytes(const std::vector<std::size_t>& lengths, Wire wire, bool first) {
    if (first) return sums_offset(lengths, wire) + total(lengths) * sizeof(float);
    return slots_offset() + total(lengths) * element_bytes(wire);
}

NodeSum::NodeSum(std::vector<Span<std::uint8_t>> members, std::size_t rank,
                 const std::vector<std::size_t>& lengths, Wire wire)
    : members_(std::move(members)), rank_(rank), wire_(wire) {
    if (wire == Wire::kScaledFp16) throw std::invalid_argument("wire: expected a format of single elements");
    if (rank >= members_.size()) throw std::invalid_argument("rank: expected one of the members");
    if (lengths.empty()) throw std::invalid_argument("lengths: expected at least one bucket");
    for (std::size_t m = 0; m < members_.size(); ++m) {
        if (members_[m].size() < bytes(lengths, wire, m == 0)) {
            throw std::invalid_argument("members: expected at least bytes(lengths, wire, first) of memory");
        }
        if (reinterpret_cast<std::uintptr_t>(members_[m].data()) % kLine != 0) {
            throw std::invalid_argument("members: expected memory that begins on a cache line");
        }
    }
    std::size_t begin = 0;
    for (std::size_t b = 0; b < lengths.size(); ++b) {
        if (lengths[b] == 0) throw std::invalid_argument("lengths: expected buckets that aren't empty");
        const std::size_t end = begin + lengths[b];
        chunks_of_.push_back((lengths[b] + kChunk - 1) / kChunk);
        for (; begin < end; begin = std::min(begin + kChunk, end)) {
            chunks_.push_back({b, begin, std::min(begin + kChunk, end)});
        }
    }
    own_bell_ = {bell_of(members_[rank])};
    std::uint8_t* const first = members_[0].data();
    std::uint8_t* const words = first + sums_offset(lengths, wire) - (2 + lengths.size()) * kLine;
    published_ = reinterpret_cast<std::uint64_t*>(words);
    taken_ = reinterpret_cast<std::uint64_t*>(words + kLine);
    done_ = reinterpret_cast<std::uint64_t*>(words + 2 * kLine);
    sums_ = reinterpret_cast<float*>(first + sums_offset(lengths, wire));
}

void NodeSum::post() {
    ++posted_;
    __atomic_store_n(posted_of(members_[rank_]), posted_, __ATOMIC_SEQ_CST);
    // Of ranks that post at the same time at least one sees that all have.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!all_posted(posted_ - 1)) return;
    if (chunks_of_[(posted_ - 1) % chunks_of_.size()] > 1) ring_others();  // there is work for several
    help();
}

bool NodeSum::all_posted(std::uint64_t number) const {
    return std::all_of(members_.begin(), members_.end(), [&](const auto& member) {
        return __atomic_load_n(posted_of(member), __ATOMIC_SEQ_CST) > number;
    });
}

void NodeSum::help() {
    const std::uint64_t buckets = chunks_of_.size();
    std::uint64_t next = __atomic_load_n(taken_, __ATOMIC_ACQUIRE);
    for (;;) {
        const std::uint64_t round = next / chunks_.size();
        const Chunk& chunk = chunks_[next % chunks_.size()];
        if (!all_posted(round * buckets + chunk.bucket)) return;
        if (!__atomic_compare_exchange_n(taken_, &next, next + 1, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_ACQUIRE)) {
            continue;  // somebody else took it, and `next` is now the one after
        }
        sum(chunk);
        std::uint64_t* const done = done_ + chunk.bucket * (kLine / kWord);
        const std::uint64_t now = __atomic_add_fetch(done, 1, __ATOMIC_SEQ_CST);
        if (now == (round + 1) * chunks_of_[chunk.bucket]) ring_others();
        ++next;
    }
}

void NodeSum::sum(const Chunk& chunk) const {
    with_wire(wire_, [&](auto format) {
        using W = decltype(format);
        std::vector<const std::byte*> parts;
        for (const auto& member : members_) {
            parts.push_back(reinterpret_cast<const std::byte*>(member.data()) + slots_offset() +
                            chunk.begin * element_bytes(wire_));
        }
        sum_into<W>(sums_ + chunk.begin, parts, chunk.end - chunk.begin);
    });
}

void NodeSum::ring_others() const {
    for (std::size_t m = 0; m < members_.size(); ++m) {
        if (m != rank_) ring(bell_of(members_[m]));
    }
}

bool NodeSum::summed(std::uint64_t number) const {
    const std::uint64_t buckets = chunks_of_.size(), bucket = number % buckets;
    return __atomic_load_n(done_ + bucket * (kLine / kWord), __ATOMIC_ACQUIRE) >=
           (number / buckets + 1) * chunks_of_[bucket];
}

template <typename Done>
bool NodeSum::wait(const Done& done, std::uint64_t spin_nanoseconds, std::uint64_t sleep_nanoseconds) {
    help();
    if (done()) return true;
    if (spin_nanoseconds > 0) {
        const std::uint64_t end = monotonic_nanoseconds() + spin_nanoseconds;
        do {
            help();
            if (done()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } while (monotonic_nanoseconds() < end);
    }
    if (sleep_nanoseconds == 0) return false;
    Sleep sleep(own_bell_);
    help();
    if (done()) return true;
    sleep.until_rung(sleep_nanoseconds);
    help();
    return done();
}

bool NodeSum::wait_summed(std::uint64_t number, std::uint64_t spin_nanoseconds,
                          std::uint64_t sleep_nanoseconds) {
    return wait([&] { return summed(number); }, spin_nanoseconds, sleep_nanoseconds);
}

void NodeSum::publish() {
    __atomic_add_fetch(published_, 1, __ATOMIC_SEQ_CST);
    ring_others();
}

bool NodeSum::wait_published(std::uint64_t number, std::uint64_t spin_nanoseconds,
                             std::uint64_t sleep_nanoseconds) {
    return wait([&] { return __atomic_load_n(published_, __ATOMIC_ACQUIRE) > number; }, spin_nanoseconds,
                sleep_nanoseconds);
}

}  // namespace persia
