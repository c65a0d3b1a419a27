// The tail of a synthesis layer on CUDA: see Tail in operators.h.
//
// Memory holds rows: of pixels, one row a channel, or with channels last of channels, one row a pixel. A block of
// threads is `lanes` wide along rows and `height` rows high. A thread takes a group of elements at a time, `reach` of
// them along a row, and `depth` rows in turn. What differs only along rows (operands and sums of channels, with
// channels last) stays in registers meanwhile.

#include <array>
#include <type_traits>

#include "common.h"

namespace ops::cuda {
namespace {

constexpr int threads = 256, warp = 32;
constexpr int64_t enough_blocks = 512;  // to keep a GPU busy

template <typename E>
constexpr int group_size = sizeof(typename E::Group) / sizeof(typename E::Bits);

struct Plan {
  bool channels_last;
  int group;  // elements that a thread loads at once: 1 where rows don't consist of whole, aligned groups
  int lanes, height, depth, reach;
  int64_t across, along;  // blocks along a row, and from the first row to the last

  int64_t chunks() const { return channels_last ? along : across; }
};

template <typename E>
Plan make_plan(const Tail& tail) {
  Plan plan;
  // Where a sample has one channel or one pixel, both layouts are the same memory: its longer side makes the rows.
  plan.channels_last = tail.p == 1 || (tail.channels_last && tail.c > 1);
  const int64_t length = plan.channels_last ? tail.c : tail.p, rows = plan.channels_last ? tail.p : tail.c;

  bool whole = length % group_size<E> == 0;
  for (const void* pointer : std::array<const void*, 5>{tail.x, tail.dy, tail.v, tail.out, tail.out_x})
    whole = whole && aligned<typename E::Group>(pointer);
  plan.group = whole ? group_size<E> : 1;

  const int most = rows == 1 ? 256 : rows == 2 ? 128 : 64;
  plan.lanes = 1;
  while (plan.lanes * plan.group < length && plan.lanes < most) plan.lanes *= 2;
  plan.height = threads / plan.lanes;

  // Reach and depth spare reads of noise and operands, and partial sums, as long as enough blocks are left.
  plan.reach = plan.channels_last ? 1 : group_size<E> / plan.group;
  plan.depth = 1;
  for (;;) {
    const int wide = plan.lanes * plan.group * plan.reach, high = plan.height * plan.depth;
    plan.across = divide_up(length, wide), plan.along = divide_up(rows, high);
    const int64_t blocks = tail.n * plan.across * plan.along;
    const bool spared = high >= 32 && tail.order == 0;  // most of what can be, where there are no sums
    if (blocks <= (spared ? 2 * enough_blocks : enough_blocks)) return plan;
    const bool deeper = plan.along > 1 && plan.depth < 16 && high < 1024;
    const bool farther = plan.across > 1 && plan.reach * plan.group < 16 && !plan.channels_last;
    if (!deeper && !farther) return plan;
    (deeper && (high < 32 || !farther) ? plan.depth : plan.reach) *= 2;
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
  bool x_is_output, limited;
  int lanes, height, depth, reach;
  unsigned across, along;
};

template <typename E, int G>
__device__ __forceinline__ void load(const typename E::Bits* from, typename E::Compute (&values)[G]) {
  if constexpr (G == 1) {
    values[0] = E::decode(__ldg(from));
  } else {
    unpack<E>(__ldg(reinterpret_cast<const typename E::Group*>(from)), values);
  }
}

template <typename E, int G>
__device__ __forceinline__ void store(typename E::Bits* to, const typename E::Compute (&values)[G]) {
  if constexpr (G == 1) {
    __stwb(to, E::encode(values[0]));
  } else {
    __stwb(reinterpret_cast<typename E::Group*>(to), pack<E>(values));
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

// Chooses the activation once for all of a thread's elements, whose computations can then overlap. curved: also those
// with a second derivative.
template <bool curved, typename S, int G>
__device__ __forceinline__ void activate_all(Activation activation, S alpha, const S (&u)[G], Jet<S> (&jets)[G]) {
  const auto by = [&](auto fixed) {
#pragma unroll
    for (int i = 0; i < G; ++i) jets[i] = activate(fixed.value, u[i], alpha);
  };
  if (activation == Activation::lrelu) return by(Fixed<Activation::lrelu>());
  if (activation == Activation::relu) return by(Fixed<Activation::relu>());
  if constexpr (curved) {
    switch (activation) {
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
      default:
        break;
    }
  }
  by(Fixed<Activation::linear>());
}

template <typename S>
struct Element {
  S out, out_x, sums[3];
};

template <int order, bool curved, typename E, typename S = typename E::Compute>
__device__ __forceinline__ Element<S> evaluate(const Arguments<E>& a, const Channel<S>& channel, const Jet<S>& jet,
                                               S noise, S x, S dy, S v) {
  const S y = a.gain * jet.value;
  if (order == 0) return {clamp(y, a.limit), 0, {}};

  const bool inside = !a.limited || (a.x_is_output ? std::abs(x) < a.limit : std::abs(y) <= a.limit);
  const S m = inside ? a.gain * jet.slope : S(0), g = dy * m;
  if (order == 1) return {g * channel.scale, 0, {g * x, g * noise, g}};

  const S t = v * channel.scale + x * channel.w[0] + noise * channel.w[1] + channel.w[2];
  const S q = curved && inside ? t * dy * (a.gain * jet.curvature) : S(0);
  return {m * t, g * channel.w[0] + q * channel.scale, {g * v + q * x, q * noise, q}};
}

// Loads, computes and stores a thread's group of elements, and adds to the sums. Sums and operands belong to one
// channel or, where each element has its own, to G channels.
template <int order, bool curved, typename E, int G, int channels, typename S = typename E::Compute>
__device__ __forceinline__ void process(const Arguments<E>& a, int64_t at, S strength, const S (&noise)[G],
                                        const Channel<S> (&operands)[channels], S (&sums)[3][channels]) {
  S x[G], dy[G] = {}, v[G] = {}, u[G];
  load<E>(a.x + at, x);
  if (order > 0) load<E>(a.dy + at, dy);
  if (order > 1 && a.v) load<E>(a.v + at, v);
#pragma unroll
  for (int i = 0; i < G; ++i) {
    const Channel<S>& channel = operands[channels == 1 ? 0 : i];
    u[i] = x[i] * channel.scale + noise[i] * strength + channel.bias;
  }
  Jet<S> jets[G];
  activate_all<curved>(a.activation, a.alpha, u, jets);
#pragma unroll
  for (int i = 0; i < G; ++i) {
    const int k = channels == 1 ? 0 : i;
    const Element<S> element = evaluate<order, curved>(a, operands[k], jets[i], noise[i], x[i], dy[i], v[i]);
    x[i] = element.out;
    v[i] = element.out_x;
    if (order > 0) {
#pragma unroll
      for (int s = 0; s < 3; ++s) sums[s][k] += element.sums[s];
    }
  }
  store<E>(a.out + at, x);
  if (order > 1 && a.out_x) store<E>(a.out_x + at, v);
}

// Brings the noise of some pixels to shared memory. Its single reads lie next to each other, whatever the layout.
template <typename E>
__device__ __forceinline__ void stage_noise(const Arguments<E>& a, int64_t sample, int64_t pixel, int count) {
  auto* const staged = shared<typename E::Compute>();
  const auto* const noise = a.noise + sample * a.noise_stride + pixel;
  for (int i = threadIdx.x; i < count && pixel + i < a.p; i += threads) staged[i] = __ldg(noise + i);
  __syncthreads();
}

template <typename E, int G, int order, bool curved>
__global__ void __launch_bounds__(threads, 1) tail_contiguous(const Arguments<E> a) {
  using S = typename E::Compute;
  struct alignas(G * sizeof(S)) Noise {
    S values[G];
  };
  const int lane = threadIdx.x & (a.lanes - 1), line = threadIdx.x / a.lanes;
  const int channels = a.height * a.depth, stride = a.lanes * G, wide = stride * a.reach;
  const int64_t chunk = blockIdx.x % a.across, sample = blockIdx.x / (a.across * a.along);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x / a.across % a.along) * channels;
  const int64_t first_pixel = chunk * wide;
  const int pixels = static_cast<int>(smaller<int64_t>(wide, a.p - first_pixel));

  if (a.noise) stage_noise(a, sample, first_pixel, wide);
  const S strength = a.strength ? __ldg(a.strength) : S(1);

  // Sums by warp: [3][channels][warps]
  S* const partial = shared<S>() + (a.noise ? wide : 0);
  const int width = smaller(a.lanes, warp), warps = a.lanes / width;

  for (int local = line; local < channels; local += a.height) {
    const int64_t channel = first_channel + local;
    S sums[3][1] = {};
    if (channel < a.c) {
      const Channel<S> operands[1] = {load_channel<order>(a, sample, channel)};
      const int64_t row = (sample * a.c + channel) * a.p + first_pixel;
      for (int pixel = lane * G; pixel < pixels; pixel += stride) {
        const Noise noise = a.noise ? *reinterpret_cast<const Noise*>(shared<S>() + pixel) : Noise{};
        process<order, curved>(a, row + pixel, strength, noise.values, operands, sums);
      }
    }
    if (order > 0 && a.sums) {
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        S sum = sums[s][0];
        for (int step = width / 2; step; step /= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, step, width);
        if (lane % width == 0) partial[(s * channels + local) * warps + lane / width] = sum;
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

template <typename E, int G, int order, bool curved>
__global__ void __launch_bounds__(threads, 1) tail_channels_last(const Arguments<E> a) {
  using S = typename E::Compute;
  const int lane = threadIdx.x & (a.lanes - 1), line = threadIdx.x / a.lanes;
  const int pixels = a.height * a.depth, wide = a.lanes * G;
  const int64_t chunk = blockIdx.x / a.across % a.along, sample = blockIdx.x / (a.across * a.along);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.x % a.across) * wide, channel = first_channel + lane * G;
  const int64_t first_pixel = chunk * pixels;

  Channel<S> operands[G];
#pragma unroll
  for (int i = 0; i < G; ++i) operands[i] = channel < a.c ? load_channel<order>(a, sample, channel + i) : Channel<S>{};
  if (a.noise) stage_noise(a, sample, first_pixel, pixels);
  const S strength = a.strength ? __ldg(a.strength) : S(1);

  S sums[3][G] = {};
  for (int local = line; local < pixels; local += a.height) {
    const int64_t pixel = first_pixel + local;
    if (pixel >= a.p || channel >= a.c) break;
    S noise[G];
#pragma unroll
    for (int i = 0; i < G; ++i) noise[i] = a.noise ? shared<S>()[local] : S(0);
    process<order, curved>(a, (sample * a.p + pixel) * a.c + channel, strength, noise, operands, sums);
  }

  if (order > 0 && a.sums) {
    // First over the lines of a warp, then over warps that have the same channels: [3][warps][channels]
    const int apart = a.lanes < warp ? warp : a.lanes, warps = threads / apart, thread = threadIdx.x;
    S* const partial = shared<S>();
    __syncthreads();  // until all have read the noise
#pragma unroll
    for (int s = 0; s < 3; ++s) {
#pragma unroll
      for (int i = 0; i < G; ++i) {
        for (int step = warp / 2; step >= a.lanes; step /= 2)
          sums[s][i] += __shfl_down_sync(0xFFFFFFFFu, sums[s][i], step);
        if (thread % apart < a.lanes) partial[(s * warps + thread / apart) * wide + lane * G + i] = sums[s][i];
      }
    }
    __syncthreads();
    for (int i = thread; i < 3 * wide; i += threads) {
      const int s = i / wide, local = i % wide;
      if (first_channel + local >= a.c) continue;
      S sum = 0;
      for (int k = 0; k < warps; ++k) sum += partial[(s * warps + k) * wide + local];
      __stwb(a.sums + ((s * int64_t(a.along) + chunk) * a.n + sample) * a.c + first_channel + local, sum);
    }
  }
}

template <typename E, int G, bool curved>
const char* launch_kernel(const Tail& tail, const Plan& plan, void* stream) {
  using Bits = typename E::Bits;
  using S = typename E::Compute;
  const auto bits = [](const void* pointer) { return static_cast<const Bits*>(pointer); };
  const auto operand = [](const void* pointer) { return static_cast<const S*>(pointer); };
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
      plan.lanes,
      plan.height,
      plan.depth,
      plan.reach,
      unsigned(plan.across),
      unsigned(plan.along),
  };

  const bool with_sums = tail.order > 0 && tail.sums;
  const int wide = plan.lanes * G * plan.reach, high = plan.height * plan.depth;
  int values;  // in shared memory
  if (plan.channels_last) {
    const int sums = 3 * wide * (threads / std::max(plan.lanes, warp));
    values = std::max(tail.noise ? high : 0, with_sums ? sums : 0);
  } else {
    const int sums = 3 * high * std::max(plan.lanes / warp, 1);
    values = (tail.noise ? wide : 0) + (with_sums ? sums : 0);
  }
  void (*const kernels[2][3])(Arguments<E>) = {
      {tail_contiguous<E, G, 0, curved>, tail_contiguous<E, G, 1, curved>, tail_contiguous<E, G, 2, curved>},
      {tail_channels_last<E, G, 0, curved>, tail_channels_last<E, G, 1, curved>, tail_channels_last<E, G, 2, curved>}};
  return launch(kernels[plan.channels_last][tail.order], arguments, tail.n * plan.across * plan.along, threads,
                values * sizeof(S), stream);
}

template <typename E>
const char* launch_plan(const Tail& tail, void* stream) {
  const Plan plan = make_plan<E>(tail);
  if (plan.group == 1) return launch_kernel<E, 1, true>(tail, plan, stream);
  return tail.activation <= Activation::lrelu ? launch_kernel<E, group_size<E>, false>(tail, plan, stream)
                                              : launch_kernel<E, group_size<E>, true>(tail, plan, stream);
}

}  // namespace

int64_t tail_chunks(const Tail& tail) {
  int64_t chunks = 0;
  with_element(tail.dtype, [&](auto element) -> const char* {
    chunks = make_plan<decltype(element)>(tail).chunks();
    return nullptr;
  });
  return chunks;
}

const char* launch_tail(const Tail& tail, void* stream) {
  if (tail.n == 0 || tail.c == 0 || tail.p == 0) return nullptr;
  return with_element(tail.dtype, [&](auto element) { return launch_plan<decltype(element)>(tail, stream); });
}

}  // namespace ops::cuda
