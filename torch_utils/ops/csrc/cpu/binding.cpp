// The operators on the CPU.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "../binding.h"
#include "tail.h"
#include "upfirdn2d.h"
#include "warp.h"
#include "winograd.h"

namespace {

struct Cpu {
  static constexpr bool factorizes = true;
  struct Guard {
    explicit Guard(c10::Device) {}
  };
  static int64_t chunks(const ops::Tail& tail) { return ops::cpu::tail_chunks(tail); }
  static void run(const ops::Tail& tail) {
    const bool serves = tail.activation == ops::Activation::linear || tail.activation == ops::Activation::lrelu;
    TORCH_CHECK_VALUE(serves, "on CPUs, linear and lrelu alone are native; found the activation number ",
                      int(tail.activation));
    ops::cpu::run_tail(tail);
  }
  // Sums by hand, as the call of an operator takes longer.
  static at::Tensor add(const at::Tensor& sums, size_t which) {
    const int64_t n = sums.size(2), c = sums.size(3), size = sums.size(1) * n * c;
    const at::Tensor gradient = which == 0 ? at::empty({n, c}, sums.options())
                                : which == 1 ? at::empty({}, sums.options())
                                             : at::empty({c}, sums.options());
    AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "add", [&] {
      const auto* from = sums.const_data_ptr<scalar_t>() + which * size;
      auto* to = gradient.mutable_data_ptr<scalar_t>();
      const int64_t count = gradient.numel();
      constexpr int64_t kAtOnce = 8;  // totals in turn: an addition to the total of the last one would wait for it
      std::vector<double> totals(count == 1 ? kAtOnce : count);
      const int64_t width = totals.size();
      for (int64_t at = 0; at < size; at += width) {
        for (int64_t i = 0; i < std::min(width, size - at); ++i) totals[i] += from[at + i];
      }
      if (count == 1) totals[0] = std::accumulate(totals.begin(), totals.end(), 0.0);
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<scalar_t>(totals[i]);
    });
    return gradient;
  }
  static void filter(const ops::Filter& filter) { ops::cpu::run_upfirdn2d(filter); }
};

// ---- 3×3 convolutions -------------------------------------------------------------------------------------------

using at::Tensor;

void require_convolution(bool holds, const Tensor& x, const Tensor& w, bool transposed) {
  TORCH_CHECK_VALUE(holds, "expected float32 x [N, C, H, W] and w ", transposed ? "[C, C', 3, 3]" : "[C', C, 3, 3]",
                    ", where C and C' are multiples of ", ops::cpu::winograd::kChannels, "; found x ", x.sizes(), " ",
                    x.scalar_type(), " and w ", w.sizes(), " ", w.scalar_type());
}

bool is_float_pictures(const Tensor& t) { return t.dim() == 4 && t.scalar_type() == at::kFloat && t.is_cpu(); }

// transposed: w is [C, C', 3, 3], as of a transposed convolution.
ops::cpu::Convolution make_convolution(const Tensor& x, const Tensor& w, bool transposed) {
  const auto fits = [](int64_t channels) { return channels > 0 && channels % ops::cpu::winograd::kChannels == 0; };
  const int64_t in = w.size(transposed ? 0 : 1), out = w.size(transposed ? 1 : 0);
  require_convolution(x.size(1) == in && fits(in) && fits(out) && w.size(2) == 3 && w.size(3) == 3, x, w,
                      transposed);
  ops::cpu::Convolution convolution{x.size(0), x.size(2), x.size(3), in, out};
  convolution.x = x.const_data_ptr<float>();
  for (int i = 0; i < 4; ++i) convolution.f_strides[i] = w.stride(transposed && i < 2 ? 1 - i : i);
  return convolution;
}

// With stride 1 and padding 1, a transposed convolution is one with the taps in reverse.
Tensor conv3x3(const Tensor& input, const Tensor& w, bool transposed) {
  require_convolution(is_float_pictures(input) && is_float_pictures(w), input, w, transposed);
  const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  auto convolution = make_convolution(x, w, transposed);
  convolution.f = w.const_data_ptr<float>();
  for (int i = 2; transposed && i < 4; ++i) {
    convolution.f += 2 * convolution.f_strides[i];
    convolution.f_strides[i] *= -1;
  }
  const Tensor at_points = at::empty({ops::cpu::winograd::kPoints, convolution.in, convolution.out}, x.options());
  Tensor y = at::empty({x.size(0), convolution.out, x.size(2), x.size(3)}, x.options(), at::MemoryFormat::ChannelsLast);
  convolution.y = y.mutable_data_ptr<float>();
  convolution.at_points = at_points.mutable_data_ptr<float>();
  ops::cpu::run_convolution(convolution);
  return y;
}

// The gradient of the weight of a convolution that is not transposed. Of w, only shape and layout count.
Tensor conv3x3_weight_gradient(const Tensor& input, const Tensor& gradient, const Tensor& w) {
  require_convolution(is_float_pictures(input) && is_float_pictures(w), input, w, false);
  const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
  auto convolution = make_convolution(x, w, false);
  const std::array<int64_t, 4> expected = {x.size(0), convolution.out, x.size(2), x.size(3)};
  TORCH_CHECK_VALUE(is_float_pictures(gradient) && gradient.sizes() == at::IntArrayRef(expected), "dy ",
                    gradient.sizes(), " ", gradient.scalar_type(), " does not fit x ", x.sizes(), " and w ", w.sizes(),
                    "; expected ", at::IntArrayRef(expected), " Float");
  const Tensor dy = gradient.contiguous(at::MemoryFormat::ChannelsLast);
  Tensor dw = at::empty_like(w);
  for (int i = 0; i < 4; ++i) convolution.f_strides[i] = dw.stride(i);
  const Tensor at_points = at::empty(
      {ops::cpu::weight_gradient_shares(convolution), ops::cpu::winograd::kPoints, convolution.in, convolution.out},
      x.options());
  convolution.dy = dy.const_data_ptr<float>();
  convolution.df = dw.mutable_data_ptr<float>();
  convolution.at_points = at_points.mutable_data_ptr<float>();
  ops::cpu::run_weight_gradient(convolution);
  return dw;
}

// ---- Warps -----------------------------------------------------------------------------------------------------

Tensor warp(const Tensor& input, const Tensor& maps_, const Tensor& taps_, bool adjoint) {
  TORCH_CHECK_VALUE(input.dim() == 4 && input.size(2) == input.size(3), "expected pictures [N, C, W, W], found ",
                    input.sizes());
  const auto fits = [](const Tensor& t, at::IntArrayRef shape) {
    return t.is_cpu() && t.scalar_type() == at::kDouble && t.sizes() == shape;
  };
  TORCH_CHECK_VALUE(fits(maps_, {input.size(0), 2, 3}) && fits(taps_, {ops::Warp::kTaps}),
                    "expected maps [N, 2, 3] and taps [", ops::Warp::kTaps, "], both Double; found maps ",
                    maps_.sizes(), " ", maps_.scalar_type(), " and taps ", taps_.sizes(), " ", taps_.scalar_type(),
                    " for x ", input.sizes());
  const Tensor x = input.contiguous(), maps = maps_.contiguous(), taps = taps_.contiguous();
  const double* const numbers = maps.const_data_ptr<double>();
  TORCH_CHECK_VALUE(std::all_of(numbers, numbers + maps.numel(), [](double m) { return std::abs(m) < 1e9; }),
                    "a map has a number that is not finite, or too large");
  Tensor y = at::empty_like(x);
  ops::cpu::run_warp({ops::binding::dtype_of(x), x.size(0), x.size(1), x.size(2), adjoint, x.const_data_ptr(),
                      y.mutable_data_ptr(), numbers, taps.const_data_ptr<double>()});
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, CPU, library) {
  ops::binding::register_operators<Cpu>(library);
  library.impl("conv3x3", conv3x3);
  library.impl("conv3x3_weight_gradient", conv3x3_weight_gradient);
  library.impl("warp", warp);
}
