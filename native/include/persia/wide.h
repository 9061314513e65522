// Code for AVX-512 in a build for any x86-64: it runs where the processor has it.
#pragma once

namespace persia {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PERSIA_WIDE __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")))
#define PERSIA_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,prefer-vector-width=512")))

inline bool has_wide() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

// Products of pairs of bf16, summed in float.
inline bool has_bf16() { return has_wide() && __builtin_cpu_supports("avx512bf16"); }
#else
inline bool has_wide() { return false; }
inline bool has_bf16() { return false; }
#endif

// Tests turn it off.
inline bool use_wide = has_wide();

}  // namespace persia
