// The tail of a synthesis layer on the CPU, for linear and lrelu; operators.h says what it computes.
//
// A block is what one thread does at a time, some rows of a sample: contiguous, a row is a channel, whose pixels are
// neighbors; channels last, a row is a pixel, whose channels are neighbors. Loops run along the neighbors, in vectors
// that are written out or so that the compiler vectorizes them; what differs between the layouts is which operands stay
// the same along the way.
#pragma once

#include "common.h"

namespace ops::cpu {

enum class Layout { contiguous, channels_last };

// How many neighbors: known to the compiler for the usual numbers of channels, so that their operands stay in
// registers from pixel to pixel; else 0.
constexpr int kUsualWidths[] = {16, 32, 64}, kMostWidth = 64;

// Pixels whose noise stays in the nearest cache from channel to channel, and rows of a group.
constexpr int64_t kNear = 2048, kTogether = 4;

// Vectors of a group in backward_groups, as there are registers for.
constexpr int kGroup = kVectorBytes == 64 ? 4 : 2;

// Elements of a block that is partly stored past the caches. The rows of its groups then lie far enough apart.
constexpr int64_t kFar = 4 * kGrain;

template <typename T>
struct Block {
  using S = Compute<T>;
  int64_t rows, width, stride;  // rows of neighbors, from the first of one to the first of the next
  int64_t through;              // rows of a group that are stored through the caches, if others go past them
  const T *x, *dy, *v;
  const S *scale, *noise, *bias, *w_x, *w_noise, *w_1;  // contiguous: noise by neighbor; channels last: noise by row
  T *out, *out_x;
  S *sum_x, *sum_noise, *sum_1;  // one number for every channel
};

template <typename S>
struct Constants {
  S alpha;  // the slope below zero: 1 of linear, of lrelu as given
  S gain, limit, strength;
  bool convex;  // order 0: gain·act(u) = max(u', alpha·u') where u' = gain·u, which comes of operands times the gain
  bool clamps = !std::isinf(limit);
  S below = gain * alpha;

  explicit Constants(const Tail& tail)
      : alpha(tail.activation == Activation::linear ? 1 : tail.alpha),
        gain(tail.gain),
        limit(tail.limit),
        strength(tail.strength ? *static_cast<const S*>(tail.strength) : S(1)),
        convex(tail.order == 0 && 0 < alpha && alpha <= 1 && gain > 0) {
    if (convex) strength *= gain;
  }
};

// How a tail is run.
struct Plan {
  bool convex;       // of the Constants
  bool plain;        // neither scale nor noise
  bool vectors;      // forward_groups for convex, backward_groups; numbers are stored as they are computed with
  bool past_caches;  // some results are stored past the caches: many, at multiples of a vector's size
  int64_t through;   // rows of a group that go through the caches then
  bool together;     // contiguous channels, as they share the noise or as memory serves several places faster than one

  template <typename T>
  static Plan of(const Tail& tail, const Constants<Compute<T>>& k) {
    const int64_t row_bytes = (tail.channels_last ? tail.c : tail.p) * int64_t(sizeof(T));
    const int64_t bytes = tail.n * tail.c * tail.p * int64_t(sizeof(T));
    Plan plan{k.convex};
    plan.plain = !tail.scale && !tail.noise;
    const bool as_computed = std::is_same_v<T, Compute<T>>, grouped = as_computed && k.convex;
    const bool whole = row_bytes % kVectorBytes == 0;
    const bool dense = !tail.channels_last || row_bytes <= kGroup * kVectorBytes;  // else it would read pieces of rows
    plan.vectors = grouped || (as_computed && tail.order == 1 && whole && dense);
    plan.past_caches = kWayPastCaches && grouped && 2 * bytes >= kCaches && whole &&
                       reinterpret_cast<uintptr_t>(tail.out) % kVectorBytes == 0;
    plan.through = bytes < 2 * kCaches ? kTogether / 2 : kTogether / 4;
    plan.together = !tail.channels_last && grouped && (plan.past_caches || (!plan.plain && tail.p > kNear));
    return plan;
  }
};

// The slope of gain·act(u): u times it is the value, and it has no slope of its own.
template <typename S>
inline S slope_at(const Constants<S>& k, S u) {
  return u > 0 ? k.gain : k.below;
}

// The sum of a vector's elements.
template <typename V>
inline auto added(V values) {
  auto total = values[0];
  for (size_t i = 1; i < sizeof(V) / sizeof(total); ++i) total += values[i];
  return total;
}

template <typename S>
inline bool inside(const Constants<S>& k, S y) {
  return !k.clamps | (std::abs(y) <= k.limit);
}

template <typename T, Layout kLayout, int kWidth>
struct Loops {
  using S = Compute<T>;
  static constexpr bool kLast = kLayout == Layout::channels_last;

  // An operand of a row, by channel or by pixel: along the neighbors it changes (kAlong) or stays the same.
  template <bool kAlong>
  struct Operand {
    const S* __restrict values;
    const S first;
    Operand(const S* v, int64_t row) : values(v), first(kAlong || !v ? S(0) : v[row]) {}
    S operator[](int64_t i) const { return kAlong ? values[i] : first; }
  };
  using ByChannel = Operand<kLast>;
  using ByPixel = Operand<!kLast>;

  // y of a number or of a vector. kConvex: scale, strength and bias have been multiplied by the gain; but kPlain
  // multiplies the sum by it, as x = −bias is to give zero.
  template <bool kPlain, bool kConvex, typename V, typename Scale, typename Noise, typename Bias>
  __attribute__((always_inline)) static V compute(const Constants<S>& k, V x, Scale scale, Noise noise, Bias bias) {
    V u = x;
    if constexpr (!kPlain) u = x * scale + noise * k.strength;
    u = u + bias;
    if constexpr (!kConvex) {
      return clamp(u * slope_at(k, u), k.limit);
    } else {
      if constexpr (kPlain) u = u * k.gain;
      const V below = u * k.alpha;
      return clamp(below > u ? below : u, V{} + k.limit);
    }
  }

  // All rows, from `column` on.
  template <bool kPlain, bool kConvex>
  static void forward_rows(const Block<T>& block, const Constants<S>& constants, int64_t column) {
    const Constants<S> k = constants;
    const int64_t width = kWidth ? kWidth : block.width, stride = kWidth ? kWidth : block.stride;
    for (int64_t row = 0; row < block.rows; ++row) {
      const T* __restrict x = block.x + row * stride;
      T* __restrict out = block.out + row * stride;
      const ByChannel scale(kPlain ? nullptr : block.scale, row), bias(block.bias, row);
      const ByPixel noise(kPlain ? nullptr : block.noise, row);
#pragma GCC ivdep
      for (int64_t i = column; i < width; ++i) {
        const S a = static_cast<S>(x[i]);
        if constexpr (kPlain) out[i] = static_cast<T>(compute<true, kConvex>(k, a, S(1), S(0), bias[i]));
        else out[i] = static_cast<T>(compute<false, kConvex>(k, a, scale[i], noise[i], bias[i]));
      }
    }
  }

  template <bool kPlain, bool kConvex>
  static void forward(const Block<T>& block, const Constants<S>& k) {
    forward_rows<kPlain, kConvex>(block, k, 0);
  }

  // The same for a convex activation, and numbers stored as they are computed with: in vectors. A group of them is
  // loaded before any of it is stored, for processors tell by the last 12 bits of addresses whether a load has to wait
  // for an earlier store, and tensors often lie so that it seems so. A group takes kRows rows, for which operands that
  // change along the neighbors are loaded once.
  //
  // Stores past the caches wait for memory, others for the caches: some rows of a group go one way and some the other,
  // which takes less time than either way alone. These rows lie far apart, since the ways disturb each other nearby.
  template <bool kPlain, int kRows, bool kPastCaches>
  static void forward_groups(const Block<T>& block, const Constants<S>& constants) {
    using V = Vector<S>;
    constexpr int kMost = kRows == 1 || kVectorBytes == 64 ? 4 : 2;  // as there are registers for
    constexpr int kLanes = sizeof(V) / sizeof(S);
    constexpr int kAcross = kWidth && kWidth < kMost * kLanes ? kWidth / kLanes : kMost, kColumns = kAcross * kLanes;
    const Constants<S> k = constants;
    const Block<T> b = block;
    const int64_t width = kWidth ? kWidth : b.width, stride = kWidth ? kWidth : b.stride;
    const int64_t whole = width / kColumns * kColumns;
    const int64_t groups = b.rows / kRows, apart = kPastCaches ? groups : 1;
    const auto of_channel = [&](const S* values, int64_t row, int64_t column) {
      if constexpr (kLast) return load<V>(values + column);
      else return values[row];
    };
    const auto of_pixel = [&](const S* values, int64_t row, int64_t column) {
      if constexpr (kLast) return values[row];
      else return load<V>(values + column);
    };
    const auto run = [&](auto rows, int64_t row) __attribute__((always_inline)) {
      constexpr int kCount = decltype(rows)::value;
      for (int64_t column = 0; column < whole; column += kColumns) {
        V ys[kCount][kAcross];
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
          for (int v = 0; v < kAcross; ++v) {
            const int64_t at = row + r * apart, i = column + v * kLanes;
            if (!kPastCaches && v * kVectorBytes % kLineBytes == 0) {
              expect_to_read(b.x + at * stride + i);
              expect_to_write(b.out + at * stride + i);
            }
            const V x = load<V>(b.x + at * stride + i);
            const auto bias = of_channel(b.bias, at, i);
            if constexpr (kPlain) {
              ys[r][v] = compute<true, true>(k, x, S(1), S(0), bias);
            } else {
              ys[r][v] = compute<false, true>(k, x, of_channel(b.scale, at, i), of_pixel(b.noise, at, i), bias);
            }
          }
        }
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
          for (int v = 0; v < kAcross; ++v) {
            T* const to = b.out + (row + r * apart) * stride + column + v * kLanes;
            if (kPastCaches && r >= b.through) store_past_caches(to, ys[r][v]);
            else store(to, ys[r][v]);
          }
        }
      }
    };
    for (int64_t i = 0; i < groups; ++i) run(std::integral_constant<int, kRows>(), kPastCaches ? i : i * kRows);
    for (int64_t row = groups * kRows; row < b.rows; ++row) run(std::integral_constant<int, 1>(), row);
    if (kWidth == 0 && whole < width) forward_rows<kPlain, true>(block, k, whole);
    if constexpr (kPastCaches) wait_for_stores();
  }

  template <bool kFromOutput, bool kSums>
  static void backward(const Block<T>& block, const Constants<S>& constants) {
    const Constants<S> k = constants;
    const int64_t width = kWidth ? kWidth : block.width;
    Sums<kSums> sums(block);
    for (int64_t row = 0; row < block.rows; ++row) {
      const T *__restrict x = block.x + row * block.stride, *__restrict dy = block.dy + row * block.stride;
      T* __restrict out = block.out + row * block.stride;
      const ByChannel scale(kFromOutput ? nullptr : block.scale, row), bias(kFromOutput ? nullptr : block.bias, row);
      const ByPixel noise(kFromOutput ? nullptr : block.noise, row);
      const int64_t slot = kWidth ? row % kSlots * kWidth : 0;
      S total_x = 0, total_noise = 0, total_1 = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) {
        const S a = static_cast<S>(x[i]);
        S g, e = 0;
        if constexpr (kFromOutput) {
          g = !k.clamps | (std::abs(a) < k.limit) ? static_cast<S>(dy[i]) * slope_at(k, a) : S(0);
          out[i] = static_cast<T>(g);
        } else {
          e = noise[i];
          const S u = a * scale[i] + (e * k.strength + bias[i]);
          const S slope = slope_at(k, u);
          g = inside(k, u * slope) ? static_cast<S>(dy[i]) * slope : S(0);
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

  // The same in vectors, for numbers stored as they are computed with, and neighbors that fill whole vectors. As in
  // forward_groups, a group is loaded before any of it is stored. Sums stay in registers: contiguous, along a channel's
  // row; channels last, down the column of some channels.
  template <bool kFromOutput, bool kSums>
  static void backward_groups(const Block<T>& block, const Constants<S>& constants) {
    using V = Vector<S>;
    constexpr int kLanes = sizeof(V) / sizeof(S);
    const Constants<S> k = constants;
    const Block<T> b = block;
    // Magnitudes are in the order of their bits, NaN above infinity. The largest that counts as inside the limit: of
    // outputs, what is at the limit was clamped to it.
    using Bits = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
    constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
    Bits most = kMagnitude;
    if (k.clamps) {
      const S limit = std::abs(k.limit);  // of −0, the bits would be the least number
      std::memcpy(&most, &limit, sizeof(S));
      most -= kFromOutput ? 1 : 0;
    }
    const auto inside = [&](V y) __attribute__((always_inline)) {
      return (reinterpret_cast<Vector<Bits>>(y) & kMagnitude) <= most;
    };
    struct Totals {
      V x{}, noise{}, one{};
    };
    // Vectors of some rows and columns. Channels last, each column adds to totals of its own.
    const auto group = [&](auto rows, auto columns, int64_t row, int64_t column, Totals* totals)
                           __attribute__((always_inline)) {
      constexpr int kRows = decltype(rows)::value, kColumns = decltype(columns)::value;
      V outs[kRows][kColumns];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          const int64_t at = row + r, i = column + c * kLanes;
          const V x = load<V>(b.x + at * b.stride + i), dy = load<V>(b.dy + at * b.stride + i);
          Totals& total = totals[kLast ? c : 0];
          if constexpr (kFromOutput) {
            const V g = inside(x) ? dy * (x > V{} ? V{} + k.gain : V{} + k.below) : V{};
            outs[r][c] = g;
            if constexpr (kSums) total.one += g;
          } else {
            const V scale = kLast ? load<V>(b.scale + i) : V{} + b.scale[at];
            const V bias = kLast ? load<V>(b.bias + i) : V{} + b.bias[at];
            const V noise = kLast ? V{} + b.noise[at] : load<V>(b.noise + i);
            const V u = x * scale + (noise * k.strength + bias), slope = u > V{} ? V{} + k.gain : V{} + k.below;
            const V g = inside(u * slope) ? dy * slope : V{};
            outs[r][c] = g * scale;
            if constexpr (kSums) total.x += g * x, total.noise += g * noise, total.one += g;
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) store(b.out + (row + r) * b.stride + column + c * kLanes, outs[r][c]);
      }
    };
    constexpr auto one = std::integral_constant<int, 1>();
    if constexpr (kLast) {
      const auto strip = [&](auto columns, int64_t column) {
        constexpr int kColumns = decltype(columns)::value, kRows = kGroup / kColumns;
        Totals totals[kColumns];
        int64_t row = 0;
        for (; row + kRows <= b.rows; row += kRows) {
          group(std::integral_constant<int, kRows>(), columns, row, column, totals);
        }
        for (; row < b.rows; ++row) group(one, columns, row, column, totals);
        for (int c = 0; kSums && c < kColumns; ++c) {
          store(b.sum_x + column + c * kLanes, totals[c].x);
          store(b.sum_noise + column + c * kLanes, totals[c].noise);
          store(b.sum_1 + column + c * kLanes, totals[c].one);
        }
      };
      int64_t column = 0;
      for (; column + kGroup * kLanes <= b.width; column += kGroup * kLanes) {
        strip(std::integral_constant<int, kGroup>(), column);
      }
      for (; column + 2 * kLanes <= b.width; column += 2 * kLanes) strip(std::integral_constant<int, 2>(), column);
      for (; column < b.width; column += kLanes) strip(one, column);
    } else {
      for (int64_t row = 0; row < b.rows; ++row) {
        Totals total;
        int64_t column = 0;
        for (; column + kGroup * kLanes <= b.width; column += kGroup * kLanes) {
          group(one, std::integral_constant<int, kGroup>(), row, column, &total);
        }
        for (; column < b.width; column += kLanes) group(one, one, row, column, &total);
        if constexpr (kSums) {
          b.sum_x[row] = added(total.x);
          b.sum_noise[row] = added(total.noise);
          b.sum_1[row] = added(total.one);
        }
      }
    }
  }

  // The slope has no slope of its own, so q of operators.h is 0, and with it the sums of noise and of 1.
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
      S total_x = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < width; ++i) {
        const S a = static_cast<S>(x[i]), e = noise[i], d = scale[i];
        const S tangent = v ? static_cast<S>(v[i]) : S(0), slope_y = static_cast<S>(dy[i]);
        const S u = a * d + (e * k.strength + bias[i]), slope = slope_at(k, u);
        const S m = inside(k, u * slope) ? slope : S(0);
        const S t = tangent * d + a * w_x[i] + e * w_noise[i] + w_1[i];
        const S g = slope_y * m;
        out[i] = static_cast<T>(m * t);
        if (out_x) out_x[i] = static_cast<T>(g * w_x[i]);
        if constexpr (kSums && kLast) sums.x[slot + i] += g * tangent;
        else if constexpr (kSums) total_x += g * tangent;
      }
      if constexpr (kSums && !kLast) {
        block.sum_x[row] = total_x;
        block.sum_noise[row] = block.sum_1[row] = 0;
      }
    }
    sums.store(block);
  }

  static auto choose(const Tail& tail, const Plan& plan) {
    if (tail.order == 2) return tail.sums ? backward2<true> : backward2<false>;
    if (tail.order == 1) {
      if constexpr (std::is_same_v<T, S>) {
        if (plan.vectors) {
          if (tail.x_is_output) return tail.sums ? backward_groups<true, true> : backward_groups<true, false>;
          return tail.sums ? backward_groups<false, true> : backward_groups<false, false>;
        }
      }
      if (tail.x_is_output) return tail.sums ? backward<true, true> : backward<true, false>;
      return tail.sums ? backward<false, true> : backward<false, false>;
    }
    if constexpr (std::is_same_v<T, S>) {
      constexpr int kRows = kWidth ? kTogether : 1;
      if (plan.past_caches) {
        return plan.plain ? forward_groups<true, kTogether, true> : forward_groups<false, kTogether, true>;
      }
      if constexpr (!kLast) {
        if (plan.together) return forward_groups<false, kTogether, false>;
      }
      if (plan.vectors) return plan.plain ? forward_groups<true, kRows, false> : forward_groups<false, kRows, false>;
    }
    if (plan.convex) return plan.plain ? forward<true, true> : forward<false, true>;
    return plan.plain ? forward<true, false> : forward<false, false>;
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
inline Loop<T> choose_loop(const Tail& tail, const Plan& plan) {
  if (!tail.channels_last) return Loops<T, Layout::contiguous, 0>::choose(tail, plan);
  constexpr auto last = Layout::channels_last;
  if constexpr (std::is_same_v<T, float>) {
    if (tail.c == kUsualWidths[0]) return Loops<T, last, kUsualWidths[0]>::choose(tail, plan);
    if (tail.c == kUsualWidths[1]) return Loops<T, last, kUsualWidths[1]>::choose(tail, plan);
    if (tail.c == kUsualWidths[2]) return Loops<T, last, kUsualWidths[2]>::choose(tail, plan);
  }
  return Loops<T, last, 0>::choose(tail, plan);
}

// The number of chunks that the pixels of a sample are cut into, each of about `elements` elements. It does not depend
// on the number of threads, so results don't either.
inline int64_t tail_chunks(const Tail& tail, int64_t elements = kGrain) {
  if (!tail.channels_last) return 1;
  const int64_t pixels = std::max<int64_t>(1, elements / std::max<int64_t>(1, tail.c));
  return std::max<int64_t>(1, (tail.p + pixels - 1) / pixels);
}

// An operand as given, times `factor`. For an absent one, `count` equal numbers stand for all of it.
template <typename S>
class Values {
 public:
  Values(const void* given, int64_t size, S factor, S otherwise, int64_t count)
      : given_(given), values_(static_cast<const S*>(given)) {
    if (given_ && factor == 1) return;
    if (given_) own_.append(values_, values_ + size);
    else own_.append(count, otherwise);
    for (S& value : own_) value *= factor;
    values_ = own_.data();
  }
  Values(const Values&) = delete;
  const S* at(int64_t offset) const { return given_ ? values_ + offset : values_; }

 private:
  const void* given_;
  const S* values_;
  // Not on the heap: a block that is taken there and freed again would get in the way of the blocks of tensors.
  c10::SmallVector<S, 1024> own_;
};

template <typename T>
inline void run_tail_of(const Tail& tail) {
  using S = Compute<T>;
  const Constants<S> constants(tail);
  const Plan plan = Plan::of<T>(tail, constants);
  const Loop<T> loop = choose_loop<T>(tail, plan);
  const bool last = tail.channels_last;
  const int64_t chunks = plan.past_caches ? tail_chunks(tail, kFar) : tail_chunks(tail), plane = tail.n * tail.c;
  const int64_t pixels = (tail.p + chunks - 1) / chunks;
  const bool noiseless = tail.x_is_output || (tail.order == 0 && plan.plain);  // none is read
  const S factor = constants.convex ? constants.gain : S(1), bias_factor = plan.plain ? S(1) : factor;
  const Values<S> scale(tail.scale, plane, factor, 1, tail.c), bias(tail.bias, tail.c, bias_factor, 0, tail.c);
  const Values<S> noise(tail.noise, 0, 1, 0, noiseless ? 0 : pixels), w(tail.w, 0, 1, 0, tail.order == 2 ? tail.c : 0);

  // One block: of sample n, some channels from c on and, from p on, as many pixels as belong together.
  const auto run = [&](int64_t n, int64_t c, int64_t channels, int64_t p) {
    const int64_t nc = n * tail.c + c, at = last ? (n * tail.p + p) * tail.c : nc * tail.p + p;
    const int64_t count = std::min(pixels, tail.p - p);
    const auto data = [&](const void* values) { return values ? static_cast<const T*>(values) + at : nullptr; };
    const auto result = [&](void* values) { return values ? static_cast<T*>(values) + at : nullptr; };
    const auto sum = [&](int64_t which) {
      return tail.sums ? static_cast<S*>(tail.sums) + (which * chunks + p / pixels) * plane + nc : nullptr;
    };
    Block<T> b;
    b.rows = last ? count : channels;
    b.width = last ? tail.c : count;
    b.stride = last ? tail.c : tail.p;
    b.through = plan.through;
    b.x = data(tail.x), b.dy = data(tail.dy), b.v = data(tail.v);
    b.scale = scale.at(nc), b.noise = noise.at(n * tail.noise_stride + p), b.bias = bias.at(c);
    b.w_x = w.at(nc), b.w_noise = w.at(plane + nc), b.w_1 = w.at(2 * plane + nc);
    b.out = result(tail.out), b.out_x = result(tail.out_x);
    b.sum_x = sum(0), b.sum_noise = sum(1), b.sum_1 = sum(2);
    loop(b, constants);
  };
  if (last) {
    at::parallel_for(0, tail.n * chunks, std::max<int64_t>(1, kGrain / (pixels * tail.c)), [&](int64_t i, int64_t end) {
      for (; i < end; ++i) run(i / chunks, 0, tail.c, i % chunks * pixels);
    });
  } else {
    // Threads don't part channels that are computed together: results would depend on it, in the last bit.
    const int64_t size = plan.together ? kTogether : 1, parts = (tail.c + size - 1) / size;
    const int64_t grain = std::max<int64_t>(1, kGrain / (tail.p * size));
    at::parallel_for(0, tail.n * parts, grain, [&](int64_t i, int64_t end) {
      while (i < end) {
        const int64_t part = i % parts, count = std::min(end - i, parts - part), c = part * size;
        run(i / parts, c, std::min(count * size, tail.c - c), 0);
        i += count;
      }
    });
  }
}

inline void run_tail(const Tail& tail) {
  if (tail.n * tail.c * tail.p == 0) return;
  dispatch(tail.dtype, [&](auto zero) { run_tail_of<decltype(zero)>(tail); });
}

}  // namespace ops::cpu
