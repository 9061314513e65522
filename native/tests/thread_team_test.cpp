#include "persia/thread_team.h"

#include <atomic>
#include <set>
#include <stdexcept>
#include <string>

#include "check.h"

using namespace persia;

namespace {

// Plain variables: what a job wrote is seen by the caller and by the next job without their help.
void each_index_runs_once_a_round(unsigned size) {
    ThreadTeam team(size);
    CHECK(team.size() == size);
    std::vector<unsigned> counts(size), sums(size);
    for (unsigned round = 1; round <= 500; ++round) {
        team.run([&](unsigned i) {
            ++counts[i];
            sums[i] += round;
        });
        for (unsigned i = 0; i < size; ++i) {
            CHECK(counts[i] == round);
            CHECK(sums[i] == round * (round + 1) / 2);
        }
    }
}

void indexes_keep_their_threads_and_the_callers_is_0() {
    ThreadTeam team(4);
    std::vector<std::thread::id> first(4);
    team.run([&](unsigned i) { first[i] = std::this_thread::get_id(); });
    CHECK(first[0] == std::this_thread::get_id());
    CHECK(std::set<std::thread::id>(first.begin(), first.end()).size() == 4);
    team.run([&](unsigned i) { CHECK(first[i] == std::this_thread::get_id()); });
}

// All of them are there at the same time: each waits for the others.
void jobs_run_at_the_same_time() {
    ThreadTeam team(3);
    std::atomic<unsigned> here{0};
    team.run([&](unsigned) {
        ++here;
        while (here != 3) std::this_thread::yield();
    });
}

void the_least_index_that_threw_is_told_when_all_have_ended() {
    ThreadTeam team(4);
    for (unsigned round = 0; round < 100; ++round) {
        std::atomic<unsigned> ended{0};
        std::string told;
        try {
            team.run([&](unsigned i) {
                if (i == 1) std::this_thread::sleep_for(std::chrono::microseconds(200));
                ++ended;
                if (i == 1 || i == 3) throw std::runtime_error(std::to_string(i));
            });
        } catch (const std::runtime_error& error) {
            told = error.what();
        }
        CHECK(told == "1" && ended == 4);
        team.run([](unsigned) {});  // and it is forgotten
    }
    CHECK_THROWS(std::logic_error, team.run([](unsigned i) {
        if (i == 0) throw std::logic_error("the caller's own");
    }));
}

void a_team_may_end_without_work() {
    for (unsigned size = 1; size < 6; ++size) ThreadTeam team(size);
}

}  // namespace

int main() {
    for (const unsigned size : {1, 2, 3, 8}) each_index_runs_once_a_round(size);
    indexes_keep_their_threads_and_the_callers_is_0();
    jobs_run_at_the_same_time();
    the_least_index_that_threw_is_told_when_all_have_ended();
    a_team_may_end_without_work();
}
