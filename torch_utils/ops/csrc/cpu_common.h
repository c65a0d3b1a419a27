// What both CPU kernels need: numbers as they are stored and as they are computed with, and work shared by threads.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __AVX__
#include <immintrin.h>
#endif

#include "operators.h"

namespace ops::cpu {

// The type to compute in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// About as many elements as are worth handing to another thread.
constexpr int64_t kGrain = 1 << 15;

// Results of so many bytes don't stay in the caches until they are read, and whether there is a way past these.
constexpr int64_t kCaches = 32 << 20;
#ifdef __AVX__
constexpr bool kWayPastCaches = true;
#else
constexpr bool kWayPastCaches = false;
#endif

// Copy, without reading what was in memory there, as processors otherwise do; and meanwhile bring in what is `next`, as
// many bytes. Other threads may not see the copy before wait_for_stores.
inline void store_past_caches(void* to, const void* from, size_t bytes, const void* next) {
  char* const target = static_cast<char*>(to);
  const char *const source = static_cast<const char*>(from), *const ahead = static_cast<const char*>(next);
  size_t done = 0;
#ifdef __AVX__
  done = std::min(bytes, -reinterpret_cast<uintptr_t>(to) % 64);
  std::memcpy(target, source, done);
  for (; done + 64 <= bytes; done += 64) {
    const auto half = [&](size_t at) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + at),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + at)));
    };
    half(done);
    half(done + 32);
    __builtin_prefetch(ahead + done);
  }
#endif
  std::memcpy(target + done, source + done, bytes - done);
}

inline void wait_for_stores() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

// Call function(T()) with the C++ type of a dtype.
template <typename F>
inline void dispatch(DType dtype, F function) {
  switch (dtype) {
    case DType::float16: return function(c10::Half());
    case DType::bfloat16: return function(c10::BFloat16());
    case DType::float32: return function(float());
    case DType::float64: return function(double());
  }
}

}  // namespace ops::cpu
