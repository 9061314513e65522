// How a rank sleeps until a peer on its node has news: words in shared memory and the kernel's futex.
#pragma once

#include <cstdint>
#include <vector>

namespace persia {

// One per rank, in memory that its peers share, on a cache line of its own; all zero at the start.
struct Bell {
    std::uint32_t count;  // what the sleeper waits on: moves with each ring
    // Peers ring only if this is set, so news cost no system call while the rank is awake.
    std::uint32_t asleep;
};

// Wakes the bell's owner if it sleeps. Call after the news were stored: a full fence stands in between.
void ring(Bell* bell);

// A wait until one of the bells rings or the time is over; it may end early. The owner must look for news
// between the constructor and `until_rung`, else it could sleep over what came just before.
class Sleep {
  public:
    explicit Sleep(const std::vector<Bell*>& bells);  // from here on peers ring
    ~Sleep();
    Sleep(const Sleep&) = delete;
    Sleep& operator=(const Sleep&) = delete;
    void until_rung(std::uint64_t nanoseconds);

  private:
    const std::vector<Bell*>& bells_;
    std::vector<std::uint32_t> counts_;
};

std::uint64_t monotonic_nanoseconds();

}  // namespace persia
