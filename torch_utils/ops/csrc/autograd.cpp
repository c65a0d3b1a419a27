// Derivatives of the operators, on any device: each is an operator again. operators.h has the equations.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <tuple>

#include "operators.h"

namespace {

using at::Tensor;
using ops::Activation;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// ---- Calling operators through the dispatcher -------------------------------------------------------------------

struct Settings {
  int64_t activation;
  double alpha, gain, limit;
};

// scale, noise, strength, bias; undefined where absent.
using Operands = std::array<Tensor, 4>;

OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }
Tensor plain(const OptionalTensor& t) { return t.value_or(Tensor()); }

template <typename Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

Tensor tail(const Tensor& x, const Operands& o, const Settings& s) {
  static const auto op = find<Tensor(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                     const OptionalTensor&, int64_t, double, double, double)>("stylegan2_mr::tail");
  return op.call(x, optional(o[0]), optional(o[1]), optional(o[2]), optional(o[3]), s.activation, s.alpha, s.gain,
                 s.limit);
}

using Mask = std::array<bool, 3>;                                       // which are wanted of scale, strength and bias
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;           // of x and of those, undefined where not wanted
using Gradients2 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // of dy, x and of those

Gradients tail_backward(const Tensor& dy, const Tensor& x, const Operands& o, const Settings& s, bool x_is_output,
                        Mask wanted) {
  static const auto op = find<Gradients(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                        const OptionalTensor&, const OptionalTensor&, int64_t, double, double, double,
                                        bool, Mask)>("stylegan2_mr::tail_backward");
  return op.call(dy, x, optional(o[0]), optional(o[1]), optional(o[2]), optional(o[3]), s.activation, s.alpha, s.gain,
                 s.limit, x_is_output, wanted);
}

// v, w: of the gradients that tail_backward gives, in its order; undefined where absent.
Gradients2 tail_backward2(const Tensor& v, const std::array<Tensor, 3>& w, const Tensor& dy, const Tensor& x,
                          const Operands& o, const Settings& s, bool want_x, Mask wanted) {
  static const auto op =
      find<Gradients2(const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                      const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                      const OptionalTensor&, int64_t, double, double, double, bool, Mask)>(
          "stylegan2_mr::tail_backward2");
  return op.call(optional(v), optional(w[0]), optional(w[1]), optional(w[2]), dy, x, optional(o[0]), optional(o[1]),
                 optional(o[2]), optional(o[3]), s.activation, s.alpha, s.gain, s.limit, want_x, wanted);
}

struct Resampling {
  int64_t up_x, up_y, down_x, down_y;
  bool flip;
  double gain;
};

using Padding = std::array<c10::SymInt, 4>;  // symbolic, for tracing with sizes left open

Tensor upfirdn2d(const Tensor& x, const Tensor& f, const Resampling& r, const Padding& p) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t, c10::SymInt, c10::SymInt,
                  c10::SymInt, c10::SymInt, bool, double)>("stylegan2_mr::upfirdn2d");
  return op.call(x, f, r.up_x, r.up_y, r.down_x, r.down_y, p[0], p[1], p[2], p[3], r.flip, r.gain);
}

// ---- What a node remembers --------------------------------------------------------------------------------------

template <typename T>
void remember(AutogradContext* ctx, const char* name, const T& values) {  // a struct of numbers, as bytes
  ctx->saved_data[name] = std::string(reinterpret_cast<const char*>(&values), sizeof(T));
}

template <typename T>
T recall(AutogradContext* ctx, const char* name) {
  T values;
  const std::string bytes = ctx->saved_data[name].toStringRef();
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(&values));
  return values;
}

// Which of the tensors given to a node need a gradient in this backward pass. An absent tensor has no edge.
template <size_t kCount>
std::array<bool, kCount> wanted(AutogradContext* ctx, const std::array<bool, kCount>& given) {
  std::array<bool, kCount> result{};
  size_t edge = 0;
  for (size_t i = 0; i < kCount; ++i) {
    if (given[i]) result[i] = ctx->needs_input_grad(edge++);
  }
  return result;
}

// Puts the wanted gradients of operands in their places. The noise has none.
void put_operand_gradients(variable_list& gradients, size_t at, Mask wanted, const Tensor& scale,
                           const Tensor& strength, const Tensor& bias, const Tensor& strength_given) {
  if (wanted[0]) gradients[at] = scale;
  if (wanted[1]) gradients[at + 2] = strength.reshape_symint(strength_given.sym_sizes());
  if (wanted[2]) gradients[at + 3] = bias;
}

// A node gives defined tensors only ...
variable_list defined(variable_list tensors) {
  const auto absent = [](const Tensor& t) { return !t.defined(); };
  tensors.erase(std::remove_if(tensors.begin(), tensors.end(), absent), tensors.end());
  return tensors;
}

// ... which this puts back in their places, from one of them on.
template <size_t kCount>
std::array<Tensor, kCount> spread(const variable_list& tensors, size_t from, const std::array<bool, kCount>& given) {
  std::array<Tensor, kCount> result;
  for (size_t i = 0; i < kCount; ++i) {
    if (given[i]) result[i] = tensors[from++];
  }
  return result;
}

// ---- Nodes ------------------------------------------------------------------------------------------------------

struct TailFunction : torch::autograd::Function<TailFunction> {
  struct Kept {
    Settings settings;
    bool from_output;
    std::array<bool, 5> given;
  };

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const OptionalTensor& scale, const OptionalTensor& noise,
                        const OptionalTensor& strength, const OptionalTensor& bias, int64_t activation, double alpha,
                        double gain, double limit) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Settings settings = {activation, alpha, gain, limit};
    const Operands o = {plain(scale), plain(noise), plain(strength), plain(bias)};
    const Tensor y = tail(x, o, settings);
    // Where the output tells the slope, the input needn't be kept; the next layer keeps the output anyway.
    const bool from_output =
        activation <= int64_t(Activation::lrelu) && !scale && !noise && gain > 0 && alpha >= 0;
    remember(ctx, "kept", Kept{settings, from_output, {true, bool(scale), bool(noise), bool(strength), bool(bias)}});
    if (from_output) {
      ctx->save_for_backward({y, Tensor(), Tensor(), Tensor(), Tensor()});
    } else {
      ctx->save_for_backward({x, o[0], o[1], o[2], o[3]});
    }
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    variable_list gradients(9);
    const auto kept = recall<Kept>(ctx, "kept");
    const variable_list saved = ctx->get_saved_variables();
    const auto want = wanted(ctx, kept.given);
    const Mask of_operands = {want[1], want[3], want[4]};
    const auto [x, scale, strength, bias] = tail_backward(
        grads[0], saved[0], {saved[1], saved[2], saved[3], saved[4]}, kept.settings, kept.from_output, of_operands);
    gradients[0] = x;
    put_operand_gradients(gradients, 1, of_operands, scale, strength, bias, saved[3]);
    return gradients;
  }
};

struct TailBackwardFunction : torch::autograd::Function<TailBackwardFunction> {
  struct Kept {
    Settings settings;
    bool x_is_output;
    Mask wanted;
    std::array<bool, 6> given;
  };

  static variable_list forward(AutogradContext* ctx, const Tensor& dy, const Tensor& x, const OptionalTensor& scale,
                               const OptionalTensor& noise, const OptionalTensor& strength, const OptionalTensor& bias,
                               int64_t activation, double alpha, double gain, double limit, bool x_is_output,
                               Mask wanted) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->set_materialize_grads(false);
    const Settings settings = {activation, alpha, gain, limit};
    const Operands o = {plain(scale), plain(noise), plain(strength), plain(bias)};
    auto [d_x, d_scale, d_strength, d_bias] = tail_backward(dy, x, o, settings, x_is_output, wanted);
    remember(ctx, "kept",
             Kept{settings, x_is_output, wanted, {true, true, bool(scale), bool(noise), bool(strength), bool(bias)}});
    ctx->save_for_backward({dy, x, o[0], o[1], o[2], o[3]});
    return defined({d_x, d_scale, d_strength, d_bias});
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = recall<Kept>(ctx, "kept");
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &dy = saved[0], &x = saved[1];
    Tensor v = grads[0];
    const auto w = spread(grads, 1, kept.wanted);
    variable_list gradients(12);
    if (!v.defined() && !w[0].defined() && !w[1].defined() && !w[2].defined()) return gradients;
    if (kept.x_is_output) {  // between kinks the slope is constant: dy alone has a gradient, by the same operator
      if (w[2].defined()) {
        Tensor of_bias = w[2].to(dy.scalar_type());
        for (int64_t i = 2; i < dy.dim(); ++i) of_bias = of_bias.unsqueeze(-1);
        v = v.defined() ? at::add(v, of_bias) : of_bias.expand_as(dy);
      }
      if (!v.defined()) return gradients;
      gradients[0] = std::get<0>(tail_backward(v, x, {}, kept.settings, true, {}));
      return gradients;
    }
    const auto want = wanted(ctx, kept.given);
    const Mask of_operands = {want[2], want[4], want[5]};
    const auto [d_dy, d_x, scale, strength, bias] = tail_backward2(
        v, w, dy, x, {saved[2], saved[3], saved[4], saved[5]}, kept.settings, want[1], of_operands);
    gradients[0] = d_dy;
    if (want[1]) gradients[1] = d_x;
    put_operand_gradients(gradients, 2, of_operands, scale, strength, bias, saved[4]);
    return gradients;
  }
};

struct TailBackward2Function : torch::autograd::Function<TailBackward2Function> {
  static variable_list forward(AutogradContext*, const OptionalTensor& v, const OptionalTensor& w_scale,
                               const OptionalTensor& w_strength, const OptionalTensor& w_bias, const Tensor& dy,
                               const Tensor& x, const OptionalTensor& scale, const OptionalTensor& noise,
                               const OptionalTensor& strength, const OptionalTensor& bias, int64_t activation,
                               double alpha, double gain, double limit, bool want_x, Mask wanted) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [d_dy, d_x, d_scale, d_strength, d_bias] =
        tail_backward2(plain(v), {plain(w_scale), plain(w_strength), plain(w_bias)}, dy, x,
                       {plain(scale), plain(noise), plain(strength), plain(bias)}, {activation, alpha, gain, limit},
                       want_x, wanted);
    return defined({d_dy, d_x, d_scale, d_strength, d_bias});
  }

  static variable_list backward(AutogradContext*, variable_list) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "the native bias_act and synthesis_tail have first and second derivatives only; for a "
                                "third one, compute within torch_utils.ops.native.reference_only()");
  }
};

struct Upfirdn2dFunction : torch::autograd::Function<Upfirdn2dFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& f, const Resampling& r,
                        const Padding& padding) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor y = upfirdn2d(x, f, r, padding);
    // The adjoint exchanges up and down, turns the filter, and pads so that the input's size comes out again.
    remember(ctx, "adjoint", Resampling{r.down_x, r.down_y, r.up_x, r.up_y, !r.flip, r.gain});
    ctx->saved_data["x0"] = f.sym_size(-1) - 1 - padding[0];
    ctx->saved_data["x1"] = x.sym_size(3) * r.up_x - y.sym_size(3) * r.down_x + padding[0] - r.up_x + 1;
    ctx->saved_data["y0"] = f.sym_size(0) - 1 - padding[2];
    ctx->saved_data["y1"] = x.sym_size(2) * r.up_y - y.sym_size(2) * r.down_y + padding[2] - r.up_y + 1;
    ctx->save_for_backward({f});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto pad = [&](const char* name) { return ctx->saved_data[name].toSymInt(); };
    const Tensor f = ctx->get_saved_variables()[0];
    return {upfirdn2d(grads[0], f, recall<Resampling>(ctx, "adjoint"), {pad("x0"), pad("x1"), pad("y0"), pad("y1")}),
            Tensor(), Tensor(), Tensor()};
  }
};

// ---- As kernels of the Autograd key -----------------------------------------------------------------------------

void refuse_gradient(const OptionalTensor& t, const char* name) {
  TORCH_CHECK_VALUE(!t || !t->requires_grad() || !at::GradMode::is_enabled(), name, " takes no gradient; detach it");
}

// Whether a derivative may be asked for. If not, a node is left out: it takes longer than the work on a small tensor.
bool followed(const Tensor& t) {
  return t.defined() && ((at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(0).defined());
}

Tensor tail_autograd(const Tensor& x, const OptionalTensor& scale, const OptionalTensor& noise,
                     const OptionalTensor& strength, const OptionalTensor& bias, int64_t activation, double alpha,
                     double gain, double limit) {
  refuse_gradient(noise, "the noise");
  const Operands o = {plain(scale), plain(noise), plain(strength), plain(bias)};
  if (!followed(x) && std::none_of(o.begin(), o.end(), followed)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return tail(x, o, {activation, alpha, gain, limit});
  }
  return TailFunction::apply(x, scale, noise, strength, bias, activation, alpha, gain, limit);
}

Gradients tail_backward_autograd(const Tensor& dy, const Tensor& x, const OptionalTensor& scale,
                                 const OptionalTensor& noise, const OptionalTensor& strength,
                                 const OptionalTensor& bias, int64_t activation, double alpha, double gain,
                                 double limit, bool x_is_output, Mask wanted) {
  refuse_gradient(noise, "the noise");
  const Operands o = {plain(scale), plain(noise), plain(strength), plain(bias)};
  if (!followed(dy) && !followed(x) && std::none_of(o.begin(), o.end(), followed)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return tail_backward(dy, x, o, {activation, alpha, gain, limit}, x_is_output, wanted);
  }
  const variable_list out = TailBackwardFunction::apply(dy, x, scale, noise, strength, bias, activation, alpha, gain,
                                                        limit, x_is_output, wanted);
  const auto of_operands = spread(out, 1, wanted);
  return {out[0], of_operands[0], of_operands[1], of_operands[2]};
}

Gradients2 tail_backward2_autograd(const OptionalTensor& v, const OptionalTensor& w_scale,
                                   const OptionalTensor& w_strength, const OptionalTensor& w_bias, const Tensor& dy,
                                   const Tensor& x, const OptionalTensor& scale, const OptionalTensor& noise,
                                   const OptionalTensor& strength, const OptionalTensor& bias, int64_t activation,
                                   double alpha, double gain, double limit, bool want_x, Mask wanted) {
  const variable_list out = TailBackward2Function::apply(v, w_scale, w_strength, w_bias, dy, x, scale, noise, strength,
                                                         bias, activation, alpha, gain, limit, want_x, wanted);
  const auto others = spread(out, 1, std::array<bool, 4>{want_x, wanted[0], wanted[1], wanted[2]});
  return {out[0], others[0], others[1], others[2], others[3]};
}

Tensor upfirdn2d_autograd(const Tensor& x, const Tensor& f, int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y,
                          c10::SymInt pad_x0, c10::SymInt pad_x1, c10::SymInt pad_y0, c10::SymInt pad_y1, bool flip,
                          double gain) {
  refuse_gradient(f, "the filter");
  const Resampling resampling = {up_x, up_y, down_x, down_y, flip, gain};
  const Padding padding = {pad_x0, pad_x1, pad_y0, pad_y1};
  if (!followed(x) && !followed(f)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return upfirdn2d(x, f, resampling, padding);
  }
  return Upfirdn2dFunction::apply(x, f, resampling, padding);
}

// conv2d_gradfix.py puts the derivatives of convolutions together, whichever way they are computed.
void refuse_derivative(std::initializer_list<Tensor> inputs) {
  TORCH_CHECK_NOT_IMPLEMENTED(std::none_of(inputs.begin(), inputs.end(), followed),
                              "the native 3×3 convolution has no derivative of its own; "
                              "torch_utils.ops.conv2d_gradfix has");
}

Tensor conv3x3_autograd(const Tensor& x, const Tensor& w, bool transposed) {
  static const auto op = find<Tensor(const Tensor&, const Tensor&, bool)>("stylegan2_mr::conv3x3");
  refuse_derivative({x, w});
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, w, transposed);
}

Tensor conv3x3_weight_gradient_autograd(const Tensor& x, const Tensor& dy, const Tensor& w) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, const Tensor&)>("stylegan2_mr::conv3x3_weight_gradient");
  refuse_derivative({x, dy});
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, dy, w);
}

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, Autograd, library) {
  library.impl("tail", tail_autograd);
  library.impl("tail_backward", tail_backward_autograd);
  library.impl("tail_backward2", tail_backward2_autograd);
  library.impl("upfirdn2d", upfirdn2d_autograd);
  library.impl("conv3x3", conv3x3_autograd);
  library.impl("conv3x3_weight_gradient", conv3x3_weight_gradient_autograd);
}
