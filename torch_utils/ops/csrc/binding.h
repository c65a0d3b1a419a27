// From tensors to the structs of operators.h: shared by the bindings of both devices.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/zeros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/Optional.h>
#include <torch/library.h>

#include <array>
#include <tuple>
#include <vector>

#include "operators.h"

namespace ops::binding {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kHalf: return DType::float16;
    case at::kBFloat16: return DType::bfloat16;
    case at::kFloat: return DType::float32;
    case at::kDouble: return DType::float64;
    default: TORCH_CHECK_VALUE(false, "expected floating-point numbers, found ", x.scalar_type());
  }
}

// A number, rounded as an element of that type is.
inline double as_stored(double value, DType dtype) {
  switch (dtype) {
    case DType::float16: return static_cast<float>(c10::Half(static_cast<float>(value)));
    case DType::bfloat16: return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    case DType::float32: return static_cast<float>(value);
    default: return value;
  }
}

inline at::ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline bool is_channels_last(const Tensor& x) {
  return !x.is_contiguous() && x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

// Dense, in its own layout if that is one of the two.
inline Tensor dense(const Tensor& x) { return is_channels_last(x) ? x : x.contiguous(); }

// Dense, in the layout of `like`.
inline Tensor dense_like(const Tensor& x, const Tensor& like, const char* name) {
  TORCH_CHECK_VALUE(x.sizes() == like.sizes() && x.scalar_type() == like.scalar_type() && x.device() == like.device(),
                    name, " ", x.sizes(), " ", x.scalar_type(), " on ", x.device(), " does not fit x ", like.sizes(),
                    " ", like.scalar_type(), " on ", like.device());
  return x.contiguous(is_channels_last(like) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

// Dense copies of operands, for as long as kernels are being launched.
using Kept = std::vector<Tensor>;

// The pointer of an operand, which must be in the compute type, and of one of the sizes.
inline const void* operand(OptionalTensor t, const Tensor& x, Kept& kept, const char* name, int64_t size,
                           int64_t or_size = -1) {
  if (!t) return nullptr;
  TORCH_CHECK_VALUE(t->numel() == size || t->numel() == or_size, name, " ", t->sizes(), " does not fit x ", x.sizes());
  TORCH_CHECK_VALUE(t->scalar_type() == compute_type(x), name, " is ", t->scalar_type(), "; expected ",
                    compute_type(x));
  TORCH_CHECK_VALUE(t->device() == x.device(), name, " is on ", t->device(), ", x on ", x.device());
  kept.push_back(t->contiguous());
  return kept.back().const_data_ptr();
}

struct Settings {
  int64_t activation;
  double alpha, gain, limit;
};

inline Tail make_tail(int order, const Tensor& x, OptionalTensor scale, OptionalTensor noise, OptionalTensor strength,
                      OptionalTensor bias, const Settings& settings, Kept& kept) {
  TORCH_CHECK_VALUE(x.dim() >= 2, "expected x [N, C, ...], found ", x.sizes());
  TORCH_CHECK_VALUE(0 <= settings.activation && settings.activation <= int64_t(Activation::swish),
                    "no activation has the number ", settings.activation);
  Tail tail{};
  tail.order = order;
  tail.dtype = dtype_of(x);
  tail.activation = static_cast<Activation>(settings.activation);
  tail.alpha = settings.alpha, tail.gain = settings.gain, tail.limit = settings.limit;
  tail.n = x.size(0), tail.c = x.size(1);
  tail.p = 1;
  for (int64_t i = 2; i < x.dim(); ++i) tail.p *= x.size(i);
  tail.channels_last = is_channels_last(x) || tail.p == 1;
  tail.x = x.const_data_ptr();
  tail.scale = operand(scale, x, kept, "scale", tail.n * tail.c);
  tail.noise = operand(noise, x, kept, "noise", tail.p, tail.n * tail.p);
  tail.noise_stride = noise && noise->numel() != tail.p ? tail.p : 0;
  tail.strength = operand(strength, x, kept, "strength", 1);
  tail.bias = operand(bias, x, kept, "bias", tail.c);
  return tail;
}

// Gradients of scale [n, c], strength [] and bias [c], and which of them are wanted.
using OperandGradients = std::array<Tensor, 3>;
using Mask = std::array<bool, 3>;

// A Backend has, for its device: chunks(tail), run(tail) and filter(filter); add(sums, which), the gradient that comes
// of sums [3, chunks, n, c]; a Guard that makes a tensor's device current; and `factorizes`, whether filter() finds out
// by itself that a filter is a product of two vectors.

// Runs a tail of order 1 or 2. Gradients that nobody wants are undefined.
template <typename Backend>
OperandGradients run_for_gradients(Tail& tail, const Tensor& x, const Mask& wanted) {
  if (!wanted[0] && !wanted[1] && !wanted[2]) {
    Backend::run(tail);
    return {};
  }
  const Tensor sums = at::empty({3, Backend::chunks(tail), tail.n, tail.c}, x.options().dtype(compute_type(x)));
  if (x.numel() == 0) sums.zero_();
  tail.sums = sums.mutable_data_ptr();
  Backend::run(tail);
  OperandGradients gradients;
  for (size_t i = 0; i < 3; ++i) {
    if (wanted[i]) gradients[i] = Backend::add(sums, i);
  }
  return gradients;
}

template <typename Backend>
Tensor tail(const Tensor& input, OptionalTensor scale, OptionalTensor noise, OptionalTensor strength,
            OptionalTensor bias, int64_t activation, double alpha, double gain, double limit) {
  const typename Backend::Guard guard(input.device());
  const Tensor x = dense(input);
  Kept kept;
  Tail tail = make_tail(0, x, scale, noise, strength, bias, {activation, alpha, gain, limit}, kept);
  Tensor y = at::empty_like(x);
  tail.out = y.mutable_data_ptr();
  Backend::run(tail);
  return y;
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> tail_backward(const Tensor& dy_, const Tensor& input, OptionalTensor scale,
                                                         OptionalTensor noise, OptionalTensor strength,
                                                         OptionalTensor bias, int64_t activation, double alpha,
                                                         double gain, double limit, bool x_is_output, Mask wanted) {
  const typename Backend::Guard guard(input.device());
  const Tensor x = dense(input), dy = dense_like(dy_, x, "dy");
  TORCH_CHECK_VALUE(!x_is_output || (activation <= int64_t(Activation::lrelu) && !scale && !noise && !bias),
                    "the output alone tells the derivative of linear, relu and lrelu only, without operands");
  Kept kept;
  Tail tail = make_tail(1, x, scale, noise, strength, bias, {activation, alpha, gain, limit}, kept);
  Tensor dx = at::empty_like(x);
  tail.x_is_output = x_is_output;
  if (x_is_output) tail.limit = as_stored(limit, tail.dtype);  // what outputs were clamped to
  tail.dy = dy.const_data_ptr();
  tail.out = dx.mutable_data_ptr();
  auto [d_scale, d_strength, d_bias] = run_for_gradients<Backend>(tail, x, wanted);
  return {dx, d_scale, d_strength, d_bias};
}

template <typename Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> tail_backward2(
    OptionalTensor v_, OptionalTensor w_scale, OptionalTensor w_strength, OptionalTensor w_bias, const Tensor& dy_,
    const Tensor& input, OptionalTensor scale, OptionalTensor noise, OptionalTensor strength, OptionalTensor bias,
    int64_t activation, double alpha, double gain, double limit, bool want_x, Mask wanted) {
  const typename Backend::Guard guard(input.device());
  const Tensor x = dense(input), dy = dense_like(dy_, x, "dy");
  Kept kept;
  Tail tail = make_tail(2, x, scale, noise, strength, bias, {activation, alpha, gain, limit}, kept);
  Tensor v;
  if (v_) {
    v = dense_like(*v_, x, "v");
    tail.v = v.const_data_ptr();
  }
  operand(w_scale, x, kept, "w_scale", tail.n * tail.c);
  operand(w_strength, x, kept, "w_strength", 1);
  operand(w_bias, x, kept, "w_bias", tail.c);
  if (w_scale || w_strength || w_bias) {
    const Tensor w = at::zeros({3, tail.n, tail.c}, x.options().dtype(compute_type(x)));
    if (w_scale) w.select(0, 0).copy_(*w_scale);
    if (w_strength) w.select(0, 1).copy_(*w_strength);
    if (w_bias) w.select(0, 2).copy_(*w_bias);
    kept.push_back(w);
    tail.w = w.const_data_ptr();
  }
  Tensor d_dy = at::empty_like(x);
  Tensor d_x = want_x ? at::empty_like(x) : Tensor();
  tail.dy = dy.const_data_ptr();
  tail.out = d_dy.mutable_data_ptr();
  tail.out_x = want_x ? d_x.mutable_data_ptr() : nullptr;
  auto [d_scale, d_strength, d_bias] = run_for_gradients<Backend>(tail, x, wanted);
  return {d_dy, d_x, d_scale, d_strength, d_bias};
}

template <typename Backend>
Tensor upfirdn2d(const Tensor& input, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                 int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip, double gain) {
  TORCH_CHECK_VALUE(input.dim() == 4, "expected pictures [N, C, H, W], found ", input.sizes());
  TORCH_CHECK_VALUE(f.dim() == 1 || f.dim() == 2, "a filter is a vector or a matrix; found ", f.sizes());
  TORCH_CHECK_VALUE(f.device() == input.device(), "the filter is on ", f.device(), ", x on ", input.device());
  TORCH_CHECK_VALUE(f.scalar_type() == compute_type(input), "the filter is ", f.scalar_type(), "; expected ",
                    compute_type(input));
  constexpr int64_t most = 1 << 20;  // keeps the kernels' 32-bit arithmetic safe
  for (int64_t factor : {up_x, up_y, down_x, down_y}) {
    TORCH_CHECK_VALUE(1 <= factor && factor <= most, "a factor of ", factor, " is not between 1 and ", most);
  }
  const typename Backend::Guard guard(input.device());
  const Tensor x = dense(input), taps = f.contiguous();
  TORCH_CHECK_VALUE(taps.numel() > 0, "the filter ", taps.sizes(), " is empty");
  Filter filter{};
  filter.dtype = dtype_of(x);
  filter.n = x.size(0), filter.c = x.size(1), filter.in_h = x.size(2), filter.in_w = x.size(3);
  filter.channels_last = is_channels_last(x);
  filter.f = taps.const_data_ptr();
  filter.flip = flip;

  // One pass over `from`, along the axes where the filter has taps.
  const auto pass = [&](const Tensor& from, int64_t height, int64_t width, bool along_x, bool along_y,
                        double pass_gain) {
    filter.filter_h = static_cast<int>(height), filter.filter_w = static_cast<int>(width);
    filter.in_h = from.size(2), filter.in_w = from.size(3);
    filter.up_x = along_x ? up_x : 1, filter.down_x = along_x ? down_x : 1, filter.pad_x = along_x ? pad_x0 : 0;
    filter.up_y = along_y ? up_y : 1, filter.down_y = along_y ? down_y : 1, filter.pad_y = along_y ? pad_y0 : 0;
    filter.gain = pass_gain;
    filter.out_w = along_x ? (filter.in_w * up_x + pad_x0 + pad_x1 - width) / down_x + 1 : filter.in_w;
    filter.out_h = along_y ? (filter.in_h * up_y + pad_y0 + pad_y1 - height) / down_y + 1 : filter.in_h;
    TORCH_CHECK_VALUE((!along_x || filter.in_w * up_x + pad_x0 + pad_x1 >= width) &&
                          (!along_y || filter.in_h * up_y + pad_y0 + pad_y1 >= height),
                      "padding [", pad_x0, ", ", pad_x1, ", ", pad_y0, ", ", pad_y1, "] leaves less of x ", x.sizes(),
                      " than the filter ", f.sizes(), " needs");
    filter.dtype = dtype_of(from);
    Tensor y = at::empty({filter.n, filter.c, filter.out_h, filter.out_w}, from.options(),
                         filter.channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
    filter.x = from.const_data_ptr();
    filter.y = y.mutable_data_ptr();
    Backend::filter(filter);
    return y;
  };
  if (f.dim() == 2) return pass(x, f.size(0), f.size(1), true, true, gain);
  if constexpr (Backend::factorizes) {
    const Tensor product = at::outer(taps, taps);
    filter.f = product.const_data_ptr();
    return pass(x, f.size(0), f.size(0), true, true, gain);
  }
  // Between the two passes, numbers may be larger than 16 bits can hold. They are not rounded until the end.
  const Tensor wide = x.to(compute_type(x));
  return pass(pass(wide, 1, f.size(0), true, false, 1), f.size(0), 1, false, true, gain).to(x.scalar_type());
}

template <typename Backend>
void register_operators(torch::Library& library) {
  library.impl("tail", tail<Backend>);
  library.impl("tail_backward", tail_backward<Backend>);
  library.impl("tail_backward2", tail_backward2<Backend>);
  library.impl("upfirdn2d", upfirdn2d<Backend>);
}

}  // namespace ops::binding
