// Code for AVX-512 in a build for any x86-64: it runs where the processor has it.
#pragma once

namespace persia {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PERSIA_WIDE __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")))

inline bool has_wide() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#else
inline bool has_wide() { return false; }
#endif

// Tests turn it off.
inline bool use_wide = has_wide();

}  // namespace persia
