#include "persia/bell.h"

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

using namespace persia;

namespace {

constexpr std::uint64_t kLongSleep = 60'000'000'000;  // ns; a wake-up that was lost would last that long

std::vector<Bell*> pointers(std::vector<Bell>& bells) {
    std::vector<Bell*> all;
    for (Bell& bell : bells) all.push_back(&bell);
    return all;
}

void sleep_at_most(Sleep& sleep) {
    const std::uint64_t begin = monotonic_nanoseconds();
    sleep.until_rung(kLongSleep);
    CHECK(monotonic_nanoseconds() - begin < kLongSleep);
}

std::uint32_t read(std::uint32_t& word) { return __atomic_load_n(&word, __ATOMIC_SEQ_CST); }

// One that was awake in between is not rung for: peers then make no system call.
void only_a_sleeper_is_rung_for() {
    Bell bell{};
    ring(&bell);
    CHECK(bell.count == 0);
    const std::vector<Bell*> bells{&bell};
    {
        Sleep sleep(bells);
        CHECK(bell.asleep == 1);
        ring(&bell);
        CHECK(bell.count == 1 && bell.asleep == 0);
        ring(&bell);
        CHECK(bell.count == 1);
        sleep_at_most(sleep);  // that came before it
    }
    {
        Sleep sleep(bells);
    }
    CHECK(bell.asleep == 0);
    ring(&bell);
    CHECK(bell.count == 1);
}

// Whichever of several bells rings.
void a_sleeper_is_woken(std::size_t num_bells) {
    std::vector<Bell> bells(num_bells);
    for (std::size_t rings = 0; rings < num_bells; ++rings) {
        std::atomic<bool> awake{false};
        std::thread sleeper([&] {
            const std::vector<Bell*> all = pointers(bells);
            Sleep sleep(all);
            sleep_at_most(sleep);
            awake = true;
        });
        while (read(bells[rings].asleep) == 0) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(num_bells == 1 ? 20 : 1));
        ring(&bells[rings]);
        sleeper.join();
        CHECK(awake);
    }
}

void a_sleep_ends_when_its_time_is_over(std::size_t num_bells) {
    std::vector<Bell> bells(num_bells);
    const std::vector<Bell*> all = pointers(bells);
    Sleep sleep(all);
    sleep.until_rung(2'000'000);
    CHECK(num_bells == 0 || bells.back().asleep == 1);
}

// Two threads in turns: each stores the news, rings, and sleeps until the other's news come. The stores are
// relaxed: it is the bell that has to order them.
void no_wake_up_is_lost(unsigned rounds, std::size_t num_bells) {
    struct Side {
        std::vector<Bell> bells;
        std::atomic<unsigned> news{0};
    };
    Side sides[2] = {{std::vector<Bell>(num_bells)}, {std::vector<Bell>(num_bells)}};
    const auto play = [&](unsigned me) {
        Side &own = sides[me], &other = sides[1 - me];
        const std::vector<Bell*> all = pointers(own.bells);
        for (unsigned round = 1; round <= rounds; ++round) {
            if (me == 0) {
                other.news.store(round, std::memory_order_relaxed);
                ring(&other.bells[round % num_bells]);
            }
            const auto come = [&] { return own.news.load(std::memory_order_relaxed) >= round; };
            while (!come()) {
                Sleep sleep(all);
                if (come()) break;
                sleep_at_most(sleep);
            }
            if (me == 1) {
                other.news.store(round, std::memory_order_relaxed);
                ring(&other.bells[round % num_bells]);
            }
        }
    };
    std::thread second([&] { play(1); });
    play(0);
    second.join();
    CHECK(sides[0].news == rounds && sides[1].news == rounds);
}

// Several ring at once, as the peers of a rank do; the sleeper sees all that they brought.
void many_ring_one_bell(unsigned num_peers, unsigned items) {
    Bell bell{};
    std::atomic<unsigned> brought{0};
    std::vector<std::thread> peers;
    for (unsigned i = 0; i < num_peers; ++i) {
        peers.emplace_back([&] {
            for (unsigned item = 0; item < items; ++item) {
                brought.fetch_add(1, std::memory_order_relaxed);
                ring(&bell);
            }
        });
    }
    const std::vector<Bell*> bells{&bell};
    for (unsigned seen = 0; seen < num_peers * items;) {
        Sleep sleep(bells);
        const unsigned now = brought.load(std::memory_order_relaxed);
        if (now == seen) sleep_at_most(sleep);
        seen = now;
    }
    for (std::thread& peer : peers) peer.join();
    CHECK(brought == num_peers * items);
}

}  // namespace

int main() {
    only_a_sleeper_is_rung_for();
    for (const std::size_t num_bells : {1, 2, 5}) a_sleeper_is_woken(num_bells);
    for (const std::size_t num_bells : {0, 1, 2, 128, 129}) a_sleep_ends_when_its_time_is_over(num_bells);
    no_wake_up_is_lost(20000, 1);
    no_wake_up_is_lost(2000, 2);
    many_ring_one_bell(3, 20000);
}
