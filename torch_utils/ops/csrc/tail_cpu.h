// The tail of a synthesis layer on the CPU; operators.h says what it computes.
//
// A block is what one thread does at a time, some rows of a sample: contiguous, a row is a channel, whose pixels are
// neighbours; channels last, a row is a pixel, whose channels are neighbours. Loops run along the neighbours, so that the
// compiler vectorises them; what differs between the layouts is which operands stay the same along the way.
#pragma once

#include "cpu_common.h"

namespace ops::cpu {

enum class Layout { contiguous, channels_last };

// How many neighbours: known to the compiler for the usual numbers of channels, so that their operands stay in
// registers from pixel to pixel; else 0.
constexpr int kUsualWidths[] = {16, 32, 64}, kMostWidth = 64;

template <typename T>
struct Block {
  using S = Compute<T>;
  int64_t rows, width, stride;  // rows of neighbours, from the first of one to the first of the next
  const T *x, *dy, *v;
  const S *scale, *noise, *bias, *w_x, *w_noise, *w_1;  // contiguous: noise by neighbour; channels last: noise by row
  T *out, *out_x;
  S *sum_x, *sum_noise, *sum_1;  // one number for every channel
};

template <typename S>
struct Constants {
  Activation activation;
  S alpha, gain, limit, strength;
  bool clamps = !std::isinf(limit);
  S below = gain * alpha;  // the slope below zero of linear, relu and lrelu, whose alpha is 1, 0 and as given
};

// gain·act(u) with its derivatives. kLinear: linear and lrelu, which the compiler can vectorise.
template <typename S, bool kLinear>
inline Jet<S> activated(const Constants<S>& k, S u) {
  if constexpr (kLinear) {
    const S slope = u > 0 ? k.gain : k.below;
    return {u * slope, slope, S(0)};
  } else {
    const Jet<S> at = activate<S>(k.activation, u, k.alpha);
    return {k.gain * at.value, k.gain * at.slope, k.gain * at.curvature};
  }
}

template <typename S>
inline bool inside(const Constants<S>& k, S y) {
  return !k.clamps | (std::abs(y) <= k.limit);
}

template <typename T, bool kLinear, Layout kLayout, int kWidth>
struct Loops {
  using S = Compute<T>;
  static constexpr bool kLast = kLayout == Layout::channels_last;

  // An operand of a row, by channel or by pixel: along the neighbours it changes (kAlong) or stays the same.
  template <bool kAlong>
  struct Operand {
    const S* __restrict values;
    const S first;
    Operand(const S* v, int64_t row) : values(v), first(kAlong ? S(0) : v[row]) {}
    S operator[](int64_t i) const { return kAlong ? values[i] : first; }
  };
  using ByChannel = Operand<kLast>;
  using ByPixel = Operand<!kLast>;

  template <bool kPlain>
  static void forward(const Block<T>& block, const Constants<S>& constants) {
    const Constants<S> k = constants;
    const int64_t width = kWidth ? kWidth : block.width;
    for (int64_t row = 0; row < block.rows; ++row) {
      const T* __restrict x = block.x + row * block.stride;
      T* __restrict out = block.out + row * block.stride;
      const ByChannel scale(block.scale, row), bias(block.bias, row);
      const ByPixel noise(block.noise, row);
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) {
        const S u = kPlain ? S(x[i]) + bias[i] : S(x[i]) * scale[i] + (noise[i] * k.strength + bias[i]);
        out[i] = static_cast<T>(clamp(activated<S, kLinear>(k, u).value, k.limit));
      }
    }
  }

  template <bool kFromOutput, bool kSums>
  static void backward(const Block<T>& block, const Constants<S>& constants) {
    const Constants<S> k = constants;
    const int64_t width = kWidth ? kWidth : block.width;
    Sums<kSums> sums(block);
    for (int64_t row = 0; row < block.rows; ++row) {
      const T *__restrict x = block.x + row * block.stride, *__restrict dy = block.dy + row * block.stride;
      T* __restrict out = block.out + row * block.stride;
      const ByChannel scale(block.scale, row), bias(block.bias, row);
      const ByPixel noise(block.noise, row);
      const int64_t slot = kWidth ? row % kSlots * kWidth : 0;
      S total_x = 0, total_noise = 0, total_1 = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) {
        const S a = static_cast<S>(x[i]);
        S g, e = 0;
        if constexpr (kFromOutput) {
          const S m = a > 0 ? k.gain : k.below;
          g = !k.clamps | (std::abs(a) < k.limit) ? static_cast<S>(dy[i]) * m : S(0);
          out[i] = static_cast<T>(g);
        } else {
          e = noise[i];
          const S u = a * scale[i] + (e * k.strength + bias[i]);
          const Jet<S> at = activated<S, kLinear>(k, u);
          g = inside(k, at.value) ? static_cast<S>(dy[i]) * at.slope : S(0);
          out[i] = static_cast<T>(g * scale[i]);
        }
        if constexpr (kSums && kLast) {
          if constexpr (!kFromOutput) {
            sums.x[slot + i] += g * a;
            sums.noise[slot + i] += g * e;
          }
          sums.one[slot + i] += g;
        } else if constexpr (kSums) {
          if constexpr (!kFromOutput) {
            total_x += g * a;
            total_noise += g * e;
          }
          total_1 += g;
        }
      }
      if constexpr (kSums && !kLast) {
        block.sum_x[row] = total_x;
        block.sum_noise[row] = total_noise;
        block.sum_1[row] = total_1;
      }
    }
    sums.store(block);
  }

  template <bool kSums>
  static void backward2(const Block<T>& block, const Constants<S>& constants) {
    const Constants<S> k = constants;
    const int64_t width = kWidth ? kWidth : block.width;
    Sums<kSums> sums(block);
    for (int64_t row = 0; row < block.rows; ++row) {
      const T *__restrict x = block.x + row * block.stride, *__restrict dy = block.dy + row * block.stride,
              *__restrict v = block.v ? block.v + row * block.stride : nullptr;
      T *__restrict out = block.out + row * block.stride, *__restrict out_x =
          block.out_x ? block.out_x + row * block.stride : nullptr;
      const ByChannel scale(block.scale, row), bias(block.bias, row);
      const ByChannel w_x(block.w_x, row), w_noise(block.w_noise, row), w_1(block.w_1, row);
      const ByPixel noise(block.noise, row);
      const int64_t slot = kWidth ? row % kSlots * kWidth : 0;
      S total_x = 0, total_noise = 0, total_1 = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) {
        const S a = static_cast<S>(x[i]), e = noise[i], d = scale[i];
        const S tangent = v ? static_cast<S>(v[i]) : S(0), slope_y = static_cast<S>(dy[i]);
        const Jet<S> at = activated<S, kLinear>(k, a * d + (e * k.strength + bias[i]));
        const S m = inside(k, at.value) ? at.slope : S(0);
        const S t = tangent * d + a * w_x[i] + e * w_noise[i] + w_1[i];
        const S g = slope_y * m;
        const S q = kLinear || !inside(k, at.value) ? S(0) : t * slope_y * at.curvature;
        out[i] = static_cast<T>(m * t);
        if (out_x) out_x[i] = static_cast<T>(g * w_x[i] + q * d);
        if constexpr (kSums && kLast) {
          sums.x[slot + i] += g * tangent + q * a;
          sums.noise[slot + i] += q * e;
          sums.one[slot + i] += q;
        } else if constexpr (kSums) {
          total_x += g * tangent + q * a;
          total_noise += q * e;
          total_1 += q;
        }
      }
      if constexpr (kSums && !kLast) {
        block.sum_x[row] = total_x;
        block.sum_noise[row] = total_noise;
        block.sum_1[row] = total_1;
      }
    }
    sums.store(block);
  }

  static auto choose(const Tail& tail) {
    if (tail.order == 0) return tail.scale || tail.noise ? forward<false> : forward<true>;
    if (tail.order == 2) return tail.sums ? backward2<true> : backward2<false>;
    if (tail.x_is_output) return tail.sums ? backward<true, true> : backward<true, false>;
    return tail.sums ? backward<false, true> : backward<false, false>;
  }

 private:
  // Rows take turns with the slots, as adding to what was added to just before makes a row wait for the last.
  static constexpr int kSlots = kWidth ? kMostWidth / kWidth : 1;

  // Where sums of channels last gather: nearby for a usual width, else where they are to be.
  template <bool kSums>
  struct Sums {
    S nearby[3][kWidth ? kMostWidth : 1] = {};
    S *x, *noise, *one;

    explicit Sums(const Block<T>& block)
        : x(kWidth ? nearby[0] : block.sum_x),
          noise(kWidth ? nearby[1] : block.sum_noise),
          one(kWidth ? nearby[2] : block.sum_1) {
      if (!kSums || !kLast || kWidth) return;
      for (S* sum : {x, noise, one}) std::fill_n(sum, block.width, S(0));
    }
    void store(const Block<T>& block) const {
      if (!kSums || !kWidth) return;
      S* const targets[] = {block.sum_x, block.sum_noise, block.sum_1};
      for (int which = 0; which < 3; ++which) {
        for (int i = 0; i < kWidth; ++i) {
          S total = 0;
          for (int slot = 0; slot < kSlots; ++slot) total += nearby[which][slot * kWidth + i];
          targets[which][i] = total;
        }
      }
    }
  };
};

template <typename T>
using Loop = void (*)(const Block<T>&, const Constants<Compute<T>>&);

template <typename T>
inline Loop<T> choose_loop(const Tail& tail) {
  const bool linear = tail.activation == Activation::linear || tail.activation == Activation::lrelu;
  if (!tail.channels_last) {
    return linear ? Loops<T, true, Layout::contiguous, 0>::choose(tail)
                  : Loops<T, false, Layout::contiguous, 0>::choose(tail);
  }
  if (!linear) return Loops<T, false, Layout::channels_last, 0>::choose(tail);
  if constexpr (std::is_same_v<T, float>) {
    if (tail.c == kUsualWidths[0]) return Loops<T, true, Layout::channels_last, kUsualWidths[0]>::choose(tail);
    if (tail.c == kUsualWidths[1]) return Loops<T, true, Layout::channels_last, kUsualWidths[1]>::choose(tail);
    if (tail.c == kUsualWidths[2]) return Loops<T, true, Layout::channels_last, kUsualWidths[2]>::choose(tail);
  }
  return Loops<T, true, Layout::channels_last, 0>::choose(tail);
}

// Pixels of a sample are cut into chunks that don't depend on the number of threads, so results don't either.
inline int64_t tail_chunks(const Tail& tail) {
  if (!tail.channels_last) return 1;
  const int64_t pixels = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, tail.c));
  return std::max<int64_t>(1, (tail.p + pixels - 1) / pixels);
}

template <typename T>
inline void run_tail_of(const Tail& tail) {
  using S = Compute<T>;
  const Loop<T> loop = choose_loop<T>(tail);
  const S alpha = tail.activation == Activation::linear ? 1 : tail.activation == Activation::relu ? 0 : tail.alpha;
  const Constants<S> constants = {tail.activation, alpha, S(tail.gain), S(tail.limit),
                                  tail.strength ? *static_cast<const S*>(tail.strength) : S(1)};
  const bool last = tail.channels_last;
  const int64_t chunks = tail_chunks(tail), pixels = (tail.p + chunks - 1) / chunks, plane = tail.n * tail.c;
  const std::vector<S> ones(tail.scale ? 0 : tail.c, S(1));
  const std::vector<S> zeros(std::max(tail.c, tail.noise ? 0 : last ? pixels : tail.p), S(0));

  // One block: of sample n, some channels from c on or, channels last, the pixels of a chunk.
  const auto block_of = [&](int64_t n, int64_t c, int64_t channels, int64_t chunk) {
    const int64_t p = std::min(tail.p, chunk * pixels), nc = n * tail.c + c;
    const int64_t at = last ? (n * tail.p + p) * tail.c : nc * tail.p;
    const auto data = [&](const void* values) { return values ? static_cast<const T*>(values) + at : nullptr; };
    const auto result = [&](void* values) { return values ? static_cast<T*>(values) + at : nullptr; };
    const auto operand = [&](const void* values, int64_t offset) {
      return values ? static_cast<const S*>(values) + offset : zeros.data();
    };
    const auto sum = [&](int64_t which) {
      return tail.sums ? static_cast<S*>(tail.sums) + (which * chunks + chunk) * plane + nc : nullptr;
    };
    Block<T> b;
    b.rows = last ? std::min(pixels, tail.p - p) : channels;
    b.width = b.stride = last ? tail.c : tail.p;
    b.x = data(tail.x), b.dy = data(tail.dy), b.v = data(tail.v);
    b.scale = tail.scale ? operand(tail.scale, nc) : ones.data();
    b.noise = operand(tail.noise, n * tail.noise_stride + p);
    b.bias = operand(tail.bias, c);
    b.w_x = operand(tail.w, nc), b.w_noise = operand(tail.w, plane + nc), b.w_1 = operand(tail.w, 2 * plane + nc);
    b.out = result(tail.out), b.out_x = result(tail.out_x);
    b.sum_x = sum(0), b.sum_noise = sum(1), b.sum_1 = sum(2);
    return b;
  };
  if (last) {
    at::parallel_for(0, tail.n * chunks, std::max<int64_t>(1, kGrain / (pixels * tail.c)), [&](int64_t i, int64_t end) {
      for (; i < end; ++i) loop(block_of(i / chunks, 0, tail.c, i % chunks), constants);
    });
  } else {
    at::parallel_for(0, plane, std::max<int64_t>(1, kGrain / tail.p), [&](int64_t i, int64_t end) {
      while (i < end) {
        const int64_t n = i / tail.c, channels = std::min(end, (n + 1) * tail.c) - i;
        loop(block_of(n, i % tail.c, channels, 0), constants);
        i += channels;
      }
    });
  }
}

inline void run_tail(const Tail& tail) {
  if (tail.n * tail.c * tail.p == 0) return;
  dispatch(tail.dtype, [&](auto zero) { run_tail_of<decltype(zero)>(tail); });
}

}  // namespace ops::cpu
