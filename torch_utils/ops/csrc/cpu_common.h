// What both CPU kernels need: numbers as they are stored and as they are computed with, and work shared by threads.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "operators.h"

namespace ops::cpu {

// The type to compute in.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// About as many elements as are worth handing to another thread.
constexpr int64_t kGrain = 1 << 15;

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
