// First values of embedding rows: a pure function of (seed, key, column), so they depend neither on the order
// of insertion nor on the number of servers or threads.
#pragma once

#include <cstdint>
#include <string>

#include "persia/key.h"

namespace persia {

class RowInit {
  public:
    // kind "uniform": in [a, b); "normal": mean a, standard deviation b.
    // Throws std::invalid_argument for another kind or for parameters that make no distribution.
    RowInit(const std::string& kind, double a, double b, std::uint64_t seed);

    void fill(Key key, float* row, std::uint32_t dim) const;

  private:
    bool normal_;
    double a_, b_;
    std::uint64_t seed_;  // mixed
};

}  // namespace persia
