// The tail of a synthesis layer on CUDA: see Tail in operators.h.
//
// Memory holds rows: of pixels, one row a channel, or with channels last of channels, one row a pixel. A block of
// threads is `lanes` wide along rows, sixteen bytes a lane, and `height` rows high; it covers `depth` times as many
// rows in turn. What differs only along rows (noise, or operands and sums of channels) stays in registers meanwhile.

#include <array>
#include <type_traits>

#include "cuda_common.h"

namespace ops::cuda {
namespace {

constexpr int threads = 256, warp = 32;

struct Plan {
  bool channels_last;
  int lanes, height, depth;
  int64_t across, along;  // blocks along a row, and from the first row to the last

  int64_t chunks() const { return channels_last ? along : across; }
};

Plan make_plan(const Tail& tail) {
  Plan plan;
  // Where a sample has one channel or one pixel, both layouts are the same memory: its longer side makes the rows.
  plan.channels_last = tail.p == 1 || (tail.channels_last && tail.c > 1);
  const int64_t length = plan.channels_last ? tail.c : tail.p, rows = plan.channels_last ? tail.p : tail.c;
  const int bytes = tail.dtype == DType::float64 ? 8 : tail.dtype == DType::float32 ? 4 : 2, vector = 16 / bytes;

  // Short rows of single elements are covered by more lanes, so that these read one after the other.
  const bool narrow = plan.channels_last && length % vector != 0;
  const int64_t wanted = narrow ? length : divide_up(length, vector);
  const int most = rows == 1 ? 256 : rows == 2 ? 128 : 64;
  plan.lanes = 1;
  while (plan.lanes < wanted && plan.lanes < most) plan.lanes *= 2;
  plan.height = threads / plan.lanes;
  plan.across = divide_up(length, plan.lanes * vector);

  // Depth spares reads of noise and operands, and partial sums, as long as enough blocks are left to fill a GPU.
  for (plan.depth = 1;; plan.depth *= 2) {
    const int covered = plan.height * plan.depth;
    plan.along = divide_up(rows, covered);
    const int64_t blocks = tail.n * plan.across * plan.along;
    if (covered >= std::min<int64_t>(rows, 1024) || plan.depth == 16) return plan;
    if (blocks <= (covered * bytes < 64 ? 128 : 512)) return plan;
  }
}

template <typename E>
struct Arguments {
  using Bits = typename E::Bits;
  using S = typename E::Compute;

  const Bits *x, *dy, *v;
  const S *scale, *noise, *strength, *bias, *w;
  Bits *out, *out_x;
  S* sums;
  int64_t n, c, p, noise_stride;
  S alpha, gain, limit;
  Activation activation;
  bool x_is_output, limited, vectors;
  int lanes, height, depth;
  unsigned across, along;
};

// A thread's elements of a row, from the row's first element in the block on.
struct Span {
  int first, step, length;
  bool vectors;

  __device__ __forceinline__ int index(int i) const { return first + i * step; }
  __device__ __forceinline__ bool has(int i) const { return index(i) < length; }
};

template <typename E>
__device__ __forceinline__ Span make_span(const Arguments<E>& a, int lane, int64_t left) {
  constexpr int V = vector_size<E>;
  const int length = static_cast<int>(left < a.lanes * V ? left : a.lanes * V);
  return a.vectors ? Span{lane * V, 1, length, true} : Span{lane, a.lanes, length, false};
}

template <typename E, int V>
__device__ __forceinline__ void load(const typename E::Bits* row, const Span& span, typename E::Compute (&values)[V]) {
  if (span.vectors) {
    unpack<E>(__ldg(reinterpret_cast<const typename E::Vector*>(row + span.first)), values);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = span.has(i) ? E::decode(__ldg(row + span.index(i))) : 0;
  }
}

template <typename E, int V>
__device__ __forceinline__ void store(typename E::Bits* row, const Span& span, const typename E::Compute (&values)[V]) {
  if (span.vectors) {
    __stwb(reinterpret_cast<typename E::Vector*>(row + span.first), pack<E>(values));
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (span.has(i)) __stwb(row + span.index(i), E::encode(values[i]));
  }
}

template <typename S>
struct Channel {
  S scale, bias, w[3];
};

template <int order, typename E>
__device__ __forceinline__ Channel<typename E::Compute> load_channel(const Arguments<E>& a, int64_t sample,
                                                                     int64_t channel) {
  using S = typename E::Compute;
  Channel<S> result = {S(1), S(0), {}};
  if (a.scale) result.scale = __ldg(a.scale + sample * a.c + channel);
  if (a.bias) result.bias = __ldg(a.bias + channel);
  if (order == 2 && a.w) {
#pragma unroll
    for (int s = 0; s < 3; ++s) result.w[s] = __ldg(a.w + (s * a.n + sample) * a.c + channel);
  }
  return result;
}

template <Activation activation>
using Fixed = std::integral_constant<Activation, activation>;

// Decides once for all of a thread's elements, which can then overlap.
template <typename S, int V>
__device__ __forceinline__ void activate_all(Activation activation, S alpha, const S (&u)[V], Jet<S> (&jets)[V]) {
  const auto by = [&](auto fixed) {
#pragma unroll
    for (int i = 0; i < V; ++i) jets[i] = activate(fixed.value, u[i], alpha);
  };
  switch (activation) {
    case Activation::relu:
      return by(Fixed<Activation::relu>());
    case Activation::lrelu:
      return by(Fixed<Activation::lrelu>());
    case Activation::tanh:
      return by(Fixed<Activation::tanh>());
    case Activation::sigmoid:
      return by(Fixed<Activation::sigmoid>());
    case Activation::elu:
      return by(Fixed<Activation::elu>());
    case Activation::selu:
      return by(Fixed<Activation::selu>());
    case Activation::softplus:
      return by(Fixed<Activation::softplus>());
    case Activation::swish:
      return by(Fixed<Activation::swish>());
    case Activation::linear:
    default:
      return by(Fixed<Activation::linear>());
  }
}

template <typename S>
struct Element {
  S out, out_x, sums[3];
};

template <int order, typename E, typename S = typename E::Compute>
__device__ __forceinline__ Element<S> evaluate(const Arguments<E>& a, const Channel<S>& channel, const Jet<S>& jet,
                                               S noise, S x, S dy, S v) {
  const S y = a.gain * jet.value;
  if (order == 0) return {clamp(y, a.limit), 0, {}};

  const bool inside = !a.limited || (a.x_is_output ? std::abs(x) < a.limit : std::abs(y) <= a.limit);
  const S m = inside ? a.gain * jet.slope : S(0), g = dy * m;
  if (order == 1) return {g * channel.scale, 0, {g * x, g * noise, g}};

  const S t = v * channel.scale + x * channel.w[0] + noise * channel.w[1] + channel.w[2];
  const S q = inside ? t * dy * (a.gain * jet.curvature) : S(0);
  return {m * t, g * channel.w[0] + q * channel.scale, {g * v + q * x, q * noise, q}};
}

// Brings the noise of some pixels to shared memory: single reads, next to each other whatever the layout.
template <typename E>
__device__ __forceinline__ void stage_noise(const Arguments<E>& a, int64_t sample, int64_t pixel, int count) {
  auto* const staged = shared<typename E::Compute>();
  const auto* const noise = a.noise + sample * a.noise_stride + pixel;
  for (int i = threadIdx.x; i < count && pixel + i < a.p; i += threads) staged[i] = __ldg(noise + i);
  __syncthreads();
}

template <typename E, int order>
__global__ void __launch_bounds__(threads, 1) tail_contiguous(const Arguments<E> a) {
  using S = typename E::Compute;
  constexpr int V = vector_size<E>;
  const int lane = threadIdx.x & (a.lanes - 1), line = threadIdx.x / a.lanes, channels = a.height * a.depth;
  const int64_t chunk = blockIdx.x % a.across, sample = blockIdx.x / (a.across * a.along);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x / a.across % a.along) * channels;
  const int64_t pixel = chunk * a.lanes * V;
  const Span span = make_span(a, lane, a.p - pixel);

  S noise[V] = {};
  if (a.noise) {
    stage_noise(a, sample, pixel, a.lanes * V);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (span.has(i)) noise[i] = shared<S>()[span.index(i)];
  }
  const S strength = a.strength ? __ldg(a.strength) : S(1);

  // Sums by warp: [3][channels][warps]
  S* const partial = shared<S>() + (a.noise ? a.lanes * V : 0);
  const int width = a.lanes < warp ? a.lanes : warp, warps = a.lanes / width;

  for (int local = line; local < channels; local += a.height) {
    const int64_t channel = first_channel + local;
    S sums[3] = {};
    if (channel < a.c && span.first < span.length) {
      const Channel<S> operands = load_channel<order>(a, sample, channel);
      const int64_t row = (sample * a.c + channel) * a.p + pixel;
      S x[V], dy[V] = {}, v[V] = {};
      load<E>(a.x + row, span, x);
      if (order > 0) load<E>(a.dy + row, span, dy);
      if (order > 1 && a.v) load<E>(a.v + row, span, v);
      S u[V];
#pragma unroll
      for (int i = 0; i < V; ++i) u[i] = x[i] * operands.scale + noise[i] * strength + operands.bias;
      Jet<S> jets[V];
      activate_all(a.activation, a.alpha, u, jets);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const Element<S> element = evaluate<order>(a, operands, jets[i], noise[i], x[i], dy[i], v[i]);
        x[i] = element.out;
        v[i] = element.out_x;
#pragma unroll
        for (int s = 0; s < 3; ++s) sums[s] += span.has(i) ? element.sums[s] : S(0);
      }
      store<E>(a.out + row, span, x);
      if (order > 1 && a.out_x) store<E>(a.out_x + row, span, v);
    }
    if (order > 0 && a.sums) {
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        for (int step = width / 2; step; step /= 2) sums[s] += __shfl_down_sync(0xFFFFFFFFu, sums[s], step, width);
        if (lane % width == 0) partial[(s * channels + local) * warps + lane / width] = sums[s];
      }
    }
  }

  if (order > 0 && a.sums) {
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * channels; i += threads) {
      const int s = i / channels, local = i % channels;
      if (first_channel + local >= a.c) continue;
      S sum = 0;
      for (int k = 0; k < warps; ++k) sum += partial[i * warps + k];
      __stwb(a.sums + ((s * int64_t(a.across) + chunk) * a.n + sample) * a.c + first_channel + local, sum);
    }
  }
}

template <typename E, int order>
__global__ void __launch_bounds__(threads, 1) tail_channels_last(const Arguments<E> a) {
  using S = typename E::Compute;
  constexpr int V = vector_size<E>;
  const int lane = threadIdx.x & (a.lanes - 1), line = threadIdx.x / a.lanes, pixels = a.height * a.depth;
  const int64_t chunk = blockIdx.x / a.across % a.along, sample = blockIdx.x / (a.across * a.along);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x % a.across) * a.lanes * V;
  const int64_t first_pixel = chunk * pixels;
  const Span span = make_span(a, lane, a.c - first_channel);

  Channel<S> operands[V];
#pragma unroll
  for (int i = 0; i < V; ++i)
    operands[i] = span.has(i) ? load_channel<order>(a, sample, first_channel + span.index(i)) : Channel<S>{};
  if (a.noise) stage_noise(a, sample, first_pixel, pixels);
  const S* const noise = shared<S>();
  const S strength = a.strength ? __ldg(a.strength) : S(1);

  S sums[3][V] = {};
  for (int local = line; local < pixels; local += a.height) {
    const int64_t pixel = first_pixel + local, row = (sample * a.p + pixel) * a.c + first_channel;
    if (pixel >= a.p || span.first >= span.length) break;
    S x[V], dy[V] = {}, v[V] = {};
    load<E>(a.x + row, span, x);
    if (order > 0) load<E>(a.dy + row, span, dy);
    if (order > 1 && a.v) load<E>(a.v + row, span, v);
    const S here = a.noise ? noise[local] : S(0);
    S u[V];
#pragma unroll
    for (int i = 0; i < V; ++i) u[i] = x[i] * operands[i].scale + here * strength + operands[i].bias;
    Jet<S> jets[V];
    activate_all(a.activation, a.alpha, u, jets);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const Element<S> element = evaluate<order>(a, operands[i], jets[i], here, x[i], dy[i], v[i]);
      x[i] = element.out;
      v[i] = element.out_x;
#pragma unroll
      for (int s = 0; s < 3; ++s) sums[s][i] += element.sums[s];
    }
    store<E>(a.out + row, span, x);
    if (order > 1 && a.out_x) store<E>(a.out_x + row, span, v);
  }

  if (order > 0 && a.sums) {
    S* const partial = shared<S>();  // [V][lines][lanes], one sum after the other
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < V; ++i) partial[i * threads + threadIdx.x] = sums[s][i];
      __syncthreads();
      for (int channel = threadIdx.x; channel < a.lanes * V; channel += threads) {
        if (first_channel + channel >= a.c) continue;
        const int i = a.vectors ? channel % V : channel / a.lanes, from = a.vectors ? channel / V : channel % a.lanes;
        S sum = 0;
        for (int k = from; k < threads; k += a.lanes) sum += partial[i * threads + k];
        __stwb(a.sums + ((s * int64_t(a.along) + chunk) * a.n + sample) * a.c + first_channel + channel, sum);
      }
    }
  }
}

template <typename E>
const char* launch_plan(const Tail& tail, const Plan& plan, void* stream) {
  using Bits = typename E::Bits;
  using S = typename E::Compute;
  constexpr int V = vector_size<E>;
  const auto bits = [](const void* pointer) { return static_cast<const Bits*>(pointer); };
  const auto operand = [](const void* pointer) { return static_cast<const S*>(pointer); };

  bool vectors = (plan.channels_last ? tail.c : tail.p) % V == 0;
  for (const void* pointer : std::array<const void*, 5>{tail.x, tail.dy, tail.v, tail.out, tail.out_x})
    vectors = vectors && vectors_allowed<E>(pointer);

  const Arguments<E> arguments = {
      bits(tail.x),
      bits(tail.dy),
      bits(tail.v),
      operand(tail.scale),
      operand(tail.noise),
      operand(tail.strength),
      operand(tail.bias),
      operand(tail.w),
      static_cast<Bits*>(tail.out),
      static_cast<Bits*>(tail.out_x),
      static_cast<S*>(tail.sums),
      tail.n,
      tail.c,
      tail.p,
      tail.noise_stride,
      S(tail.alpha),
      S(tail.gain),
      S(tail.limit),
      tail.activation,
      tail.x_is_output,
      !std::isinf(tail.limit),
      vectors,
      plan.lanes,
      plan.height,
      plan.depth,
      unsigned(plan.across),
      unsigned(plan.along),
  };

  const bool with_sums = tail.order > 0 && tail.sums;
  const int64_t row = plan.lanes * V, rows = plan.height * plan.depth;
  int64_t values;  // in shared memory
  if (plan.channels_last) {
    values = std::max(tail.noise ? rows : 0, with_sums ? int64_t(threads) * V : 0);
  } else {
    values = (tail.noise ? row : 0) + (with_sums ? 3 * rows * divide_up(plan.lanes, warp) : 0);
  }
  void (*const kernels[2][3])(Arguments<E>) = {
      {tail_contiguous<E, 0>, tail_contiguous<E, 1>, tail_contiguous<E, 2>},
      {tail_channels_last<E, 0>, tail_channels_last<E, 1>, tail_channels_last<E, 2>}};
  return launch(kernels[plan.channels_last][tail.order], arguments, tail.n * plan.across * plan.along, threads,
                values * sizeof(S), stream);
}

}  // namespace

int64_t tail_chunks(const Tail& tail) { return make_plan(tail).chunks(); }

const char* launch_tail(const Tail& tail, void* stream) {
  if (tail.n == 0 || tail.c == 0 || tail.p == 0) return nullptr;
  const Plan plan = make_plan(tail);
  return with_element(tail.dtype, [&](auto element) { return launch_plan<decltype(element)>(tail, plan, stream); });
}

}  // namespace ops::cuda
