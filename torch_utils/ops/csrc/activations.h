// The activations with their first two derivatives, as the CUDA kernels compute them. The CPU kernels serve linear and
// lrelu only, whose slope alone tells all, and take the list and the clamp from here.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define OPS_FUNCTION __host__ __device__ __forceinline__
#else
#define OPS_FUNCTION inline
#endif

namespace ops {

// The order of ACTIVATIONS in reference.py, whose position is the code that Python passes.
enum class Activation : int { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// A function's value and derivatives at one place.
template <typename S>
struct Jet {
  S value, slope, curvature;
};

// S: float or double. alpha: the slope of lrelu below zero.
template <typename S>
OPS_FUNCTION Jet<S> activate(Activation activation, S u, S alpha) {
  switch (activation) {
    case Activation::relu:  // written so that NaN stays NaN
      return {u <= 0 ? S(0) : u, S(u > 0), S(0)};
    case Activation::lrelu:
      return {u > 0 ? u : u * alpha, u > 0 ? S(1) : alpha, S(0)};
    case Activation::tanh: {
      const S t = std::tanh(u), slope = 1 - t * t;
      return {t, slope, -2 * t * slope};
    }
    case Activation::sigmoid: {
      const S s = 1 / (1 + std::exp(-u)), slope = s * (1 - s);
      return {s, slope, slope * (1 - 2 * s)};
    }
    case Activation::elu: {
      const S e = std::exp(u < 0 ? u : S(0));
      return {u > 0 ? u : std::expm1(u), e, u < 0 ? e : S(0)};
    }
    case Activation::selu: {
      const S scale = S(1.0507009873554804934193349852946);
      const S product = S(1.6732632423543772848170429916717) * scale;
      const S e = product * std::exp(u < 0 ? u : S(0));
      return {u > 0 ? scale * u : product * std::expm1(u), u > 0 ? scale : e, u < 0 ? e : S(0)};
    }
    case Activation::softplus: {
      if (u > 20) return {u, S(1), S(0)};  // as PyTorch does
      const S s = 1 / (1 + std::exp(-u));
      return {std::log1p(std::exp(u)), s, s * (1 - s)};
    }
    case Activation::swish: {
      const S s = 1 / (1 + std::exp(-u)), t = s * (1 - s);
      return {u * s, s + u * t, t * (2 + u * (1 - 2 * s))};
    }
    case Activation::linear:
    default:
      return {u, S(1), S(0)};
  }
}

// ±limit; NaN stays NaN. limit: infinity for none. Written as the minimum and maximum instructions compare.
template <typename S>
OPS_FUNCTION S clamp(S y, S limit) {
  const S below = limit < y ? limit : y;
  return -limit > below ? -limit : below;
}

}  // namespace ops
