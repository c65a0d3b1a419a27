// 3×3 convolutions on the CPU with a quarter of the multiplications, as Winograd's minimal filters allow (Lavin and
// Gray, "Fast algorithms for convolutional neural networks", 2016).
//
// A tile of 4×4 outputs depends on a patch of 6×6 inputs. Patches, weights and tiles are taken for polynomials in two
// variables, known by their values at 6×6 points; there, a convolution is 36 separate products, each of which adds over
// channels. That is one matrix product for each point:
//
//   products[point] [tile][out] = patches[point] [tile][in] · weights[point] [in][out]
//
// The points along each axis are 0, ±√½, ±√2 and ∞, which round less than the usual 0, ±1, ±2, ∞: results are about
// twice as far from exact ones as plain sums are. An infinity or a NaN makes all of its tiles NaN.
#pragma once

#include "common.h"

namespace ops::cpu {

// y[n, j, i, o] = Σ_{c, k, l} f[o, c, k, l] · x[n, j + k − 1, i + l − 1, c], with zeros around the picture. Tensors are
// dense in the order shown, but for the weight. The channels `in` and `out` are multiples of kChannels.
struct Convolution {
  int64_t n, h, w, in, out;
  const float* x;        // [n][h][w][in]
  const float* f;        // run_convolution: its element [0, 0, 0, 0]
  float* df;             // run_weight_gradient: as f
  int64_t f_strides[4];  // from output to output channel, input to input channel, down and along the taps
  float* y;              // run_convolution: [n][h][w][out]
  const float* dy;       // run_weight_gradient: as y
  float* at_points;      // memory for the weight at points, or its gradient in weight_gradient_shares
};

namespace winograd {

constexpr int64_t kChannels = 16;  // a multiple of every processor's vector
constexpr int kPatch = 6, kTile = 4, kPoints = kPatch * kPatch;

// What a thread has in work: it should stay in the cache of a core, along with some of the weights.
constexpr int64_t kBytesInWork = 1 << 19;

// Rows of a matrix product that are computed together, as there are registers for: tiles, or input channels.
constexpr int kTilesTogether = kVectorBytes == 64 ? 12 : 6, kChannelsTogether = kVectorBytes == 64 ? 8 : 4;

// A weight's gradient is summed in as many shares as there are threads, if each has at least kTilesAShare tiles and all
// of them take at most kBytesOfShares bytes.
constexpr int64_t kTilesAShare = 16, kBytesOfShares = 1 << 25;

using V = Vector<float>;
constexpr int kLanes = sizeof(V) / sizeof(float);

#define OPS_INLINE __attribute__((always_inline)) inline

// ---- Transformations along one axis -------------------------------------------------------------------------------
//
// With points ±a and ±b, even and odd powers are added up apart. The last point is ∞.

constexpr float kA = 0.70710678118654752F, kB = 1.41421356237309505F, kA2 = 0.5F, kB2 = 2;

// Lagrange's denominators at 0, ±a and ±b.
constexpr float kAt0 = 1 / (kA2 * kB2), kAtA = 1 / (2 * kA2 * (kA2 - kB2)), kAtB = 1 / (2 * kB2 * (kB2 - kA2));

OPS_INLINE void patch_to_points(const V (&x)[6], V (&p)[6]) {
  const V even_a = x[4] - x[2] * kB2, odd_a = (x[3] - x[1] * kB2) * kA;
  const V even_b = x[4] - x[2] * kA2, odd_b = (x[3] - x[1] * kA2) * kB;
  p[0] = x[0] * (kA2 * kB2) - x[2] * (kA2 + kB2) + x[4];
  p[1] = even_a + odd_a, p[2] = even_a - odd_a;
  p[3] = even_b + odd_b, p[4] = even_b - odd_b;
  p[5] = x[1] * (kA2 * kB2) - x[3] * (kA2 + kB2) + x[5];
}

OPS_INLINE void taps_to_points(const V (&f)[3], V (&p)[6]) {
  const V even_a = (f[0] + f[2] * kA2) * kAtA, odd_a = f[1] * (kAtA * kA);
  const V even_b = (f[0] + f[2] * kB2) * kAtB, odd_b = f[1] * (kAtB * kB);
  p[0] = f[0] * kAt0;
  p[1] = even_a + odd_a, p[2] = even_a - odd_a;
  p[3] = even_b + odd_b, p[4] = even_b - odd_b;
  p[5] = f[2];
}

OPS_INLINE void points_to_tile(const V (&p)[6], V (&y)[4]) {
  const V even_a = p[1] + p[2], odd_a = p[1] - p[2], even_b = p[3] + p[4], odd_b = p[3] - p[4];
  y[0] = p[0] + even_a + even_b;
  y[1] = odd_a * kA + odd_b * kB;
  y[2] = even_a * kA2 + even_b * kB2;
  y[3] = odd_a * (kA * kA2) + odd_b * (kB * kB2) + p[5];
}

// The adjoints of points_to_tile and taps_to_points, for the gradient of the weight.
OPS_INLINE void tile_to_points(const V (&y)[4], V (&p)[6]) {
  const V even_a = y[0] + y[2] * kA2, odd_a = y[1] * kA + y[3] * (kA * kA2);
  const V even_b = y[0] + y[2] * kB2, odd_b = y[1] * kB + y[3] * (kB * kB2);
  p[0] = y[0];
  p[1] = even_a + odd_a, p[2] = even_a - odd_a;
  p[3] = even_b + odd_b, p[4] = even_b - odd_b;
  p[5] = y[3];
}

OPS_INLINE void points_to_taps(const V (&p)[6], V (&f)[3]) {
  const V even_a = (p[1] + p[2]) * kAtA, even_b = (p[3] + p[4]) * kAtB;
  f[0] = p[0] * kAt0 + even_a + even_b;
  f[1] = (p[1] - p[2]) * (kAtA * kA) + (p[3] - p[4]) * (kAtB * kB);
  f[2] = even_a * kA2 + even_b * kB2 + p[5];
}

// Along each row of from(row, column), then down each column, to to(row, column, value).
template <auto kTransform, int kFrom, int kTo, typename From, typename To>
OPS_INLINE void both_ways(From from, To to) {
  V between[kTo][kFrom];
  for (int row = 0; row < kFrom; ++row) {
    V in[kFrom], out[kTo];
#pragma GCC unroll 6
    for (int column = 0; column < kFrom; ++column) in[column] = from(row, column);
    kTransform(in, out);
#pragma GCC unroll 6
    for (int column = 0; column < kTo; ++column) between[column][row] = out[column];
  }
  for (int column = 0; column < kTo; ++column) {
    V out[kTo];
    kTransform(between[column], out);
#pragma GCC unroll 6
    for (int row = 0; row < kTo; ++row) to(row, column, out[row]);
  }
}

// ---- Tiles --------------------------------------------------------------------------------------------------------

struct Tiles {
  int64_t down, across, count;
  explicit Tiles(const Convolution& a)
      : down((a.h + kTile - 1) / kTile), across((a.w + kTile - 1) / kTile), count(a.n * down * across) {}
};

// Pixels of a picture, some of which may lie outside.
struct Window {
  int64_t sample, top, left, h, w;

  // around: pixels that it has around the tile.
  Window(const Convolution& a, const Tiles& tiles, int64_t tile, int64_t around)
      : sample(tile / tiles.across / tiles.down),
        top(tile / tiles.across % tiles.down * kTile - around),
        left(tile % tiles.across * kTile - around),
        h(a.h),
        w(a.w) {}

  bool holds(int row, int column) const {
    return 0 <= top + row && top + row < h && 0 <= left + column && left + column < w;
  }
  bool holds_all(int size) const { return holds(0, 0) && holds(size - 1, size - 1); }
  int64_t first_pixel() const { return (sample * h + top) * w + left; }  // which may be none
};

// From a window's kSize×kSize pixels [channels] to their values at points, [36][apart].
template <auto kTransform, int kSize>
inline void to_points(const Window& window, const float* pixels, int64_t channels, float* points, int64_t apart) {
  const int64_t begin = window.first_pixel() * channels, next_row = window.w * channels;
  const auto run = [&](auto all_inside) __attribute__((always_inline)) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      both_ways<kTransform, kSize, kPatch>(
          [&](int row, int column) __attribute__((always_inline)) {
            if (!decltype(all_inside)::value && !window.holds(row, column)) return V{};
            return load<V>(pixels + (begin + c + row * next_row + column * channels));
          },
          [&](int row, int column, V value) __attribute__((always_inline)) {
            store(points + (row * kPatch + column) * apart + c, value);
          });
    }
  };
  if (window.holds_all(kSize)) run(std::true_type());
  else run(std::false_type());
}

inline void from_points(const Window& window, const float* points, int64_t apart, float* pixels, int64_t channels) {
  const int64_t begin = window.first_pixel() * channels, next_row = window.w * channels;
  const auto run = [&](auto all_inside) __attribute__((always_inline)) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      both_ways<points_to_tile, kPatch, kTile>(
          [&](int row, int column) __attribute__((always_inline)) {
            return load<V>(points + (row * kPatch + column) * apart + c);
          },
          [&](int row, int column, V value) __attribute__((always_inline)) {
            if (!decltype(all_inside)::value && !window.holds(row, column)) return;
            store(pixels + (begin + c + row * next_row + column * channels), value);
          });
    }
  };
  if (window.holds_all(kTile)) run(std::true_type());
  else run(std::false_type());
}

// ---- Matrix products ----------------------------------------------------------------------------------------------

// Rows and columns of c (+)= a · b. a is stored with any strides, the rows of b and c are dense.
struct Product {
  int64_t depth;
  const float* a;
  int64_t a_row, a_depth;
  const float* b;
  float* c;
  int64_t columns;
  bool add;

  template <int kRows, int kVectors>
  OPS_INLINE void some(int64_t row, int64_t column) const {
    V sums[kRows][kVectors];
    float* const to = c + row * columns + column;
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add ? load<V>(to + r * columns + v * kLanes) : V{};
    }
    for (int64_t k = 0; k < depth; ++k) {
      V along[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) along[v] = load<V>(b + k * columns + column + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const V down = V{} + a[(row + r) * a_row + k * a_depth];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] += down * along[v];
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) store(to + r * columns + v * kLanes, sums[r][v]);
    }
  }

  // rows: a multiple of kRows.
  template <int kRows>
  void run(int64_t rows) const {
    int64_t column = 0;
    for (; column + 2 * kLanes <= columns; column += 2 * kLanes) {
      for (int64_t row = 0; row < rows; row += kRows) some<kRows, 2>(row, column);
    }
    for (; column < columns; column += kLanes) {
      for (int64_t row = 0; row < rows; row += kRows) some<kRows, 1>(row, column);
    }
  }
};

// Memory of this thread that it keeps.
inline float* workspace(int64_t size) {
  constexpr int64_t kAlignment = kVectorBytes / sizeof(float);
  static thread_local std::vector<float> memory;
  if (int64_t(memory.size()) < size + kAlignment) memory.resize(size + kAlignment);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (kVectorBytes - address % kVectorBytes) % kVectorBytes / sizeof(float);
}

// How many tiles are in work at a time, a multiple of kTilesTogether.
inline int64_t tiles_in_work(const Convolution& a) {
  const int64_t tile_bytes = kPoints * (a.in + a.out) * int64_t(sizeof(float));
  return std::max<int64_t>(1, kBytesInWork / tile_bytes / kTilesTogether) * kTilesTogether;
}

// A loop over the vectors of a weight's channels: each(input channel, first of the output channels).
template <typename F>
inline void for_each_vector(const Convolution& a, F each) {
  at::parallel_for(0, a.in, std::max<int64_t>(1, kGrain / 16 / a.out), [&](int64_t c, int64_t end) {
    for (; c < end; ++c) {
      for (int64_t o = 0; o < a.out; o += kLanes) each(c, o);
    }
  });
}

// The weight at points: [36][in][out].
inline void weight_to_points(const Convolution& a) {
  const int64_t* const by = a.f_strides;
  for_each_vector(a, [&](int64_t c, int64_t o) {
    both_ways<taps_to_points, 3, kPatch>(
        [&](int row, int column) {
          const float* const f = a.f + o * by[0] + c * by[1] + row * by[2] + column * by[3];
          V taps{};
          for (int lane = 0; lane < kLanes; ++lane) taps[lane] = f[lane * by[0]];
          return taps;
        },
        [&](int row, int column, V value) {
          store(a.at_points + ((row * kPatch + column) * a.in + c) * a.out + o, value);
        });
  });
}

// The gradient of the weight from the gradient of its values at points, which is the sum of the shares.
inline void points_to_weight(const Convolution& a, int64_t shares) {
  const int64_t* const by = a.f_strides;
  const int64_t size = kPoints * a.in * a.out;
  for_each_vector(a, [&](int64_t c, int64_t o) {
    both_ways<points_to_taps, kPatch, 3>(
        [&](int row, int column) {
          const float* const points = a.at_points + ((row * kPatch + column) * a.in + c) * a.out + o;
          V sum = load<V>(points);
          for (int64_t share = 1; share < shares; ++share) sum += load<V>(points + share * size);
          return sum;
        },
        [&](int row, int column, V value) {
          float* const df = a.df + o * by[0] + c * by[1] + row * by[2] + column * by[3];
          for (int lane = 0; lane < kLanes; ++lane) df[lane * by[0]] = value[lane];
        });
  });
}

}  // namespace winograd

inline int64_t weight_gradient_shares(const Convolution& a) {
  const int64_t bytes = winograd::kPoints * a.in * a.out * int64_t(sizeof(float));
  const int64_t tiles = winograd::Tiles(a).count;
  const int64_t most = std::min(winograd::kBytesOfShares / bytes, tiles / winograd::kTilesAShare);
  return std::clamp<int64_t>(most, 1, at::get_num_threads());
}

inline void run_convolution(const Convolution& a) {
  using namespace winograd;
  const Tiles tiles(a);
  const int64_t most = tiles_in_work(a);
  weight_to_points(a);
  at::parallel_for(0, tiles.count, kTilesTogether, [&](int64_t first, int64_t end) {
    float* const patches = workspace(kPoints * most * (a.in + a.out));
    float* const products = patches + kPoints * most * a.in;
    for (; first < end; first += most) {
      const int64_t count = std::min(most, end - first);
      for (int64_t t = 0; t < count; ++t) {
        const Window patch(a, tiles, first + t, 1);
        to_points<patch_to_points, kPatch>(patch, a.x, a.in, patches + t * a.in, most * a.in);
      }
      const int64_t rows = (count + kTilesTogether - 1) / kTilesTogether * kTilesTogether;
      for (int64_t point = 0; point < kPoints; ++point) {
        const float* const weight = a.at_points + point * a.in * a.out;
        Product{a.in, patches + point * most * a.in, a.in, 1, weight, products + point * most * a.out, a.out, false}
            .run<kTilesTogether>(rows);
      }
      for (int64_t t = 0; t < count; ++t) {
        from_points(Window(a, tiles, first + t, 0), products + t * a.out, most * a.out, a.y, a.out);
      }
    }
  });
}

// df[o, c, k, l] = Σ_{n, j, i} dy[n, j, i, o] · x[n, j + k − 1, i + l − 1, c]
inline void run_weight_gradient(const Convolution& a) {
  using namespace winograd;
  const Tiles tiles(a);
  const int64_t most = tiles_in_work(a);
  const int64_t shares = weight_gradient_shares(a), size = kPoints * a.in * a.out;
  at::parallel_for(0, shares, 1, [&](int64_t share, int64_t last) {
    float* const patches = workspace(kPoints * most * (a.in + a.out));
    float* const gradients = patches + kPoints * most * a.in;
    for (; share < last; ++share) {
      const int64_t begin = tiles.count * share / shares, end = tiles.count * (share + 1) / shares;
      float* const sums = a.at_points + share * size;
      if (begin == end) std::fill_n(sums, size, 0.0F);
      for (int64_t first = begin; first < end; first += most) {
        const int64_t count = std::min(most, end - first);
        for (int64_t t = 0; t < count; ++t) {
          const Window patch(a, tiles, first + t, 1), tile(a, tiles, first + t, 0);
          to_points<patch_to_points, kPatch>(patch, a.x, a.in, patches + t * a.in, most * a.in);
          to_points<tile_to_points, kTile>(tile, a.dy, a.out, gradients + t * a.out, most * a.out);
        }
        for (int64_t point = 0; point < kPoints; ++point) {
          const float* const gradient = gradients + point * most * a.out;
          Product{count, patches + point * most * a.in, 1, a.in, gradient, sums + point * a.in * a.out, a.out,
                  first > begin}
              .run<kChannelsTogether>(a.in);
        }
      }
    }
  });
  points_to_weight(a, shares);
}

#undef OPS_INLINE

}  // namespace ops::cpu
