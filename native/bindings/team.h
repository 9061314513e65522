// Threads that Python holds, for one call at a time.
#pragma once

#include <pybind11/pybind11.h>

#include <mutex>

#include "persia/thread_team.h"

namespace persia_bindings {

class Team {
  public:
    explicit Team(unsigned size) : team_(size) {}

    template <typename Use>
    void run(const Use& use) {
        const pybind11::gil_scoped_release nogil;
        const std::lock_guard<std::mutex> lock(mutex_);
        use(team_);
    }

  private:
    persia::ThreadTeam team_;
    std::mutex mutex_;
};

}  // namespace persia_bindings
