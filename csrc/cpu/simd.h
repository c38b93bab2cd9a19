// One object file, several instruction sets: a function marked DEEPGEN_SIMD is compiled for each
// and chosen when the library is loaded. What it calls must be inlined into it, or it would run in
// the baseline's code.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define DEEPGEN_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DEEPGEN_SIMD
#endif

#define DEEPGEN_INLINE inline __attribute__((always_inline))
