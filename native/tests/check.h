// CHECK(condition) and CHECK_THROWS(Error, expression) for tests that are plain programs: they print the
// first failure and end with status 1.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            std::fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                               \
        }                                                                               \
    } while (false)

#define CHECK_THROWS(Error, ...)                                                                    \
    do {                                                                                            \
        bool threw = false;                                                                         \
        try {                                                                                       \
            __VA_ARGS__;                                                                            \
        } catch (const Error&) {                                                                    \
            threw = true;                                                                           \
        }                                                                                           \
        if (!threw) {                                                                               \
            std::fprintf(stderr, "%s:%d: no " #Error " by %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
            std::exit(1);                                                                           \
        }                                                                                           \
    } while (false)
