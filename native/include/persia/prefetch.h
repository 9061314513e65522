// Software prefetch of whole objects.
#pragma once

#include <cstddef>

namespace persia {

// Always inlined: GCC takes a function that only prefetches for one without effects, and drops calls to it.
__attribute__((always_inline)) inline void prefetch(const void* from, std::size_t bytes) {
    const char* line = static_cast<const char*>(from);
    for (std::size_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(line + offset, 1);
    __builtin_prefetch(line + bytes - 1, 1);
}

}  // namespace persia
