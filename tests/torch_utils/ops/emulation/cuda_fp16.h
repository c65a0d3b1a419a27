// CUDA's half: conversions round to the nearest, ties to even.
#pragma once

#include <cmath>

#include "cuda_runtime.h"

struct __half { unsigned short bits; };

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, fraction = h.bits & 1023;
  const float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                          : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                         : std::ldexp(float(fraction), -24);
  return h.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return {0x7FFF};
  if (magnitude >= 65536) return {static_cast<unsigned short>(sign | 0x7C00)};
  const int exponent = magnitude < std::ldexp(1.0f, -14) ? -14 : std::ilogb(magnitude);
  const int steps = int(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));  // 1024 and more where normal
  return {static_cast<unsigned short>(sign | (((exponent + 14) << 10) + steps))};
}
