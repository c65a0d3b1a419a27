// CUDA's bfloat16: conversions round to the nearest, ties to even.
#pragma once

#include <cmath>

#include "cuda_runtime.h"

struct __nv_bfloat16 { unsigned short bits; };

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.bits; }

inline float __bfloat162float(__nv_bfloat16 b) {
  const unsigned bits = unsigned(b.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  if (std::isnan(value)) return {0x7FFF};
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return {static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
