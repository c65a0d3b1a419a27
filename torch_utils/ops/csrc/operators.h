// What bindings hand to kernels: plain pointers and sizes, so that kernels compile without PyTorch.
#pragma once

#include <cstdint>

#include "activations.h"

namespace ops {

enum class DType : int { float16, bfloat16, float32, float64 };

// Operands and sums are kept in the compute type: double for float64, float for all others.

// The tail of a synthesis layer, on a dense [n][c][p] or, with channels_last, [n][p][c] (p: pixels; with
// one pixel they are the same):
//
//   u = x·scale + noise·strength + bias,   y = clamp(gain·act(u), ±limit)
//
// bias_act is the tail without scale and noise. With m = dy/du = gain·act'(u) inside the limit and 0 outside:
//
//   order 0   x → out = y
//   order 1   dy, x → out = dx = g·scale with g = dy·m;
//             sums = Σp g·x, Σp g·noise, Σp g
//   order 2   the derivatives of order 1: given v for dx and w[0..2] for the three sums,
//             t = v·scale + x·w[0] + noise·w[1] + w[2],   q = t·dy·dm/du
//             out = ∂dy = m·t,   out_x = ∂x = g·w[0] + q·scale;
//             sums = Σp (g·v + q·x), Σp q·noise, Σp q
//
// Null operands count as: scale 1, noise 0, strength 1, bias 0, v 0, w 0.
struct Tail {
  int order;
  DType dtype;
  Activation activation;
  double alpha, gain, limit;  // limit: infinity for none
  int64_t n, c, p;
  bool channels_last;

  const void* x;
  // Order 1, linear, relu and lrelu without operands: `x` holds y, which tells the slope as well, and `limit` is
  // rounded as y is.
  bool x_is_output;
  const void* scale;     // [n][c]
  const void* noise;     // [p], or [n][p]
  int64_t noise_stride;  // from one sample's noise to the next: 0 or p
  const void* strength;  // [1]
  const void* bias;      // [c]

  const void* dy;  // orders 1 and 2, shaped as x
  const void* v;   // order 2, shaped as x
  const void* w;   // order 2, [3][n][c]

  void* out;
  void* out_x;  // order 2; null where nobody asks for it
  void* sums;   // orders 1 and 2: [3][chunks][n][c], to be added over chunks; null where nobody asks for them
};

// Insert up − 1 zeros after each sample, pad (or crop, where negative), filter, keep every down-th sample:
//
//   y[j, i] = gain · Σ_{k, l} f[k, l] · z[j·down_y + k, i·down_x + l]      (f turned by 180° unless `flip`)
//
// for each of n·c pictures [in_h, in_w] → [out_h, out_w], dense [n][c][h][w] or, with channels_last, [n][h][w][c].
struct Filter {
  DType dtype;
  int64_t n, c, in_h, in_w, out_h, out_w;
  bool channels_last;
  const void* x;
  void* y;
  const void* f;  // [filter_h][filter_w], in the compute type
  int filter_h, filter_w;
  int up_x, up_y, down_x, down_y;
  int64_t pad_x, pad_y;  // before the first column and row
  bool flip;
  double gain;
};

// Move each of n·c pictures [w][w] by the affine map of its n, on the CPU:
//
//   y = D S U R x,   or with `adjoint`   y = (D S U R)ᵀ x
//
// R continues the picture by its reflections, w − 1 pixels on each side, and by 0 beyond them. U enlarges it twice by
// the taps, whose tap kCenter stays in place; S samples it bilinearly, at twice the resolution too; D makes the samples
// smaller with the taps in reverse. If the map is the identity, so is D S U R.
struct Warp {
  static constexpr int kTaps = 12, kCenter = 5;
  DType dtype;
  int64_t n, c, w;
  bool adjoint;
  const void* x;
  void* y;
  const double* maps;  // [n][2][3], from pixels of the result to pixels of x, both counted from 0
  const double* taps;  // [kTaps], with a sum of 1
};

namespace cuda {
// All return null, or what the runtime says is wrong. stream: a cudaStream_t.
int64_t tail_chunks(const Tail& tail);
const char* launch_tail(const Tail& tail, void* stream);
const char* launch_upfirdn2d(const Filter& filter, void* stream);
}  // namespace cuda

}  // namespace ops
