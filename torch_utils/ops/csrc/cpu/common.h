// What the CPU kernels share: numbers as they are stored and as they are computed with, and work shared by threads.
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

#include "../operators.h"

namespace ops::cpu {

// The type to compute in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// About as many elements as are worth handing to another thread.
constexpr int64_t kGrain = 1 << 15;

// What a processor computes with at once.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename S>
using Vector __attribute__((vector_size(kVectorBytes))) = S;

template <typename V, typename S>
inline V load(const S* from) {
  V values;
  std::memcpy(&values, from, sizeof(V));
  return values;
}

template <typename V, typename S>
inline void store(S* to, V values) {
  std::memcpy(to, &values, sizeof(V));
}

template <typename V, size_t... kAt>
inline V shuffle(V a, V b, std::index_sequence<kAt...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, int(kAt)...);
#else
  using I = std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vector<I>{I(kAt)...});
#endif
}

// Every kStep-th element of two vectors in a row, from kFirst on.
template <int kFirst, int kStep, typename V, size_t... kLane>
inline V pick(V a, V b, std::index_sequence<kLane...>) {
  return shuffle(a, b, std::index_sequence<kFirst + kStep * kLane...>());
}

// The first or second half of a[0], b[0], a[1], b[1], …
template <int kHalf, typename V, size_t... kLane>
inline V interleave(V a, V b, std::index_sequence<kLane...>) {
  constexpr size_t kLanes = sizeof...(kLane);
  return shuffle(a, b, std::index_sequence<(kLane % 2 * kLanes + kLane / 2 + kHalf * kLanes / 2)...>());
}

// What the caches hold, in bytes, on the processors that this is tuned on, and whether there is a way past them.
#ifndef OPS_CACHES  // tests make them smaller
#define OPS_CACHES (32 << 20)
#endif
constexpr int64_t kCaches = OPS_CACHES;
#ifdef __AVX__
constexpr bool kWayPastCaches = true;
#else
constexpr bool kWayPastCaches = false;
#endif

// Store a vector at a multiple of its size. A usual store reads what was in memory there; this one does not. Other
// threads may not see the vector before wait_for_stores.
template <typename V>
inline void store_past_caches(void* to, V values) {
#if defined(__AVX512F__)
  _mm512_stream_si512(static_cast<__m512i*>(to), reinterpret_cast<__m512i>(values));
#elif defined(__AVX__)
  _mm256_stream_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(values));
#else
  std::memcpy(to, &values, sizeof(V));
#endif
}

inline void wait_for_stores() {
#ifdef __AVX__
  _mm_sfence();
#endif
}

// Ask for a line of the caches that is read or written soon, some way ahead. Processors see by themselves where a loop
// is heading, but start anew at every page of memory. There may be no such memory: then nothing happens.
constexpr int kLineBytes = 64;
constexpr uintptr_t kBytesAhead = 2048;
inline const void* ahead(const void* at) {
  return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + kBytesAhead);
}
inline void expect_to_read(const void* at) { __builtin_prefetch(ahead(at), 0); }
inline void expect_to_write(const void* at) { __builtin_prefetch(ahead(at), 1); }

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
