// Warps of pictures on the CPU; operators.h says what they compute.
//
// All steps of a picture are done on what fits into the caches, and only for the window of it that is seen. Eight
// channels are computed at once: they are neighbors in memory, so a sample is one vector, and its place and weights are
// computed once for all of them.
#pragma once

#include "common.h"

namespace ops::cpu::warp {

constexpr int kLanes = 8;  // channels that are computed at once
template <typename S>
using Channels __attribute__((vector_size(kLanes * sizeof(S)))) = S;

template <typename T>
class Warper {
  using S = Compute<T>;
  using V = Channels<S>;
  static constexpr int kTaps = Warp::kTaps, kCenter = Warp::kCenter;
  // A sample of the enlarged picture at 2·i or 2·i + 1 meets the pixels from i − kBefore to i + kBehind.
  static constexpr int kBefore = kTaps / 2 - kCenter / 2 - 1, kBehind = kCenter / 2 + 1;

 public:
  explicit Warper(const Warp& a) : a_(a), size_(2 * a.w + kTaps - 2) {
    for (int k = 0; k < kTaps; ++k) taps_[k] = static_cast<S>(a.taps[k]);
  }

  void run() const {
    const int64_t blocks = (a_.c + kLanes - 1) / kLanes;
    at::parallel_for(0, a_.n * blocks, 1, [&](int64_t begin, int64_t end) {
      static thread_local Buffers buffers;  // kept, so as not to take memory in every call
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = item / blocks, c = item % blocks * kLanes;
        if (stays(n)) copy(n, c);
        else if (a_.adjoint) map_back(n, c, buffers);
        else map(n, c, buffers);
      }
    });
  }

 private:
  // The part that is seen of a picture and its reflections, in pixels. Empty if a last one is before a first.
  struct Window {
    int64_t x0, x1, y0, y1;
    int64_t width() const { return x1 - x0 + 1; }
    int64_t height() const { return y1 - y0 + 1; }
  };

  // Where a sample lies in the enlarged window, and the weight of its right or lower neighbor.
  struct Place {
    int64_t x, y;
    S right, below;
  };

  struct Buffers {
    std::vector<S> pixels, column, enlarged, samples, row, result;
    std::vector<Place> places;
  };

  // ---- The map and its adjoint -----------------------------------------------------------------------------------

  void map(int64_t n, int64_t c, Buffers& b) const {
    const Window window = find_window(n);
    resize(b.result, a_.w * a_.w);
    if (window.x0 > window.x1 || window.y0 > window.y1) {
      std::fill(b.result.begin(), b.result.end(), S(0));
    } else {
      cut(n, c, window, b.pixels);
      enlarge(window, b);
      resize(b.row, size_);
      resize(b.samples, size_ * a_.w);
      for (int64_t y = 0; y < size_; ++y) {
        find_places(n, y, window, b.places);
        sample(window, b);
        for (int64_t x = 0; x < a_.w; ++x) {
          put(b.samples, y * a_.w + x, sum(b.row.data() + 2 * x * kLanes, 1));
        }
      }
      for (int64_t at = 0; at < a_.w * a_.w; ++at) {
        put(b.result, at, sum(b.samples.data() + (at / a_.w * 2 * a_.w + at % a_.w) * kLanes, a_.w));
      }
    }
    unpack(n, c, b.result);
  }

  void map_back(int64_t n, int64_t c, Buffers& b) const {
    const Window window = find_window(n);
    resize(b.result, a_.w * a_.w);
    if (window.x0 > window.x1 || window.y0 > window.y1) {
      std::fill(b.result.begin(), b.result.end(), S(0));
      return unpack(n, c, b.result);
    }
    pack(n, c, b.result);
    resize(b.samples, size_ * a_.w);
    resize(b.row, size_);
    resize(b.enlarged, 4 * window.width() * window.height());
    std::fill(b.enlarged.begin(), b.enlarged.end(), S(0));
    for (int64_t y = 0; y < size_; ++y) {
      S* const line = b.samples.data() + y * a_.w * kLanes;
      spread(b.result.data(), a_.w, y, line, a_.w);
      for (int64_t x = 0; x < size_; ++x) spread(line, 1, x, b.row.data() + x * kLanes, 1);
      find_places(n, y, window, b.places);
      scatter(window, b);
    }
    reduce(window, b);
    std::fill(b.result.begin(), b.result.end(), S(0));
    add_cut(window, b.pixels, b.result);
    unpack(n, c, b.result);
  }

  // The identity is exact: the wavelets are orthonormal. A copy is faster, and has no rounding.
  bool stays(int64_t n) const {
    constexpr double identity[6] = {1, 0, 0, 0, 1, 0};
    return std::equal(identity, identity + 6, a_.maps + n * 6);
  }

  void copy(int64_t n, int64_t c) const {
    const int64_t plane = a_.w * a_.w, from = (n * a_.c + c) * plane;
    std::copy_n(static_cast<const T*>(a_.x) + from, channels(c) * plane, static_cast<T*>(a_.y) + from);
  }

  // ---- Windows ---------------------------------------------------------------------------------------------------

  // The position in the enlarged picture of a sample of the moved one.
  void locate(int64_t n, double x, double y, double& u, double& v) const {
    const double* m = a_.maps + n * 6;
    x = (x - kCenter) / 2, y = (y - kCenter) / 2;  // in pixels of the result
    u = 2 * (m[0] * x + m[1] * y + m[2]);
    v = 2 * (m[3] * x + m[4] * y + m[5]);
  }

  Window find_window(int64_t n) const {
    double least[2] = {1e300, 1e300}, most[2] = {-1e300, -1e300};
    for (int corner = 0; corner < 4; ++corner) {
      double at[2];
      locate(n, corner % 2 * (size_ - 1), corner / 2 * (size_ - 1), at[0], at[1]);
      for (int i = 0; i < 2; ++i) least[i] = std::min(least[i], at[i]), most[i] = std::max(most[i], at[i]);
    }
    // An image and its reflections, which have one pixel less. A bilinear sample takes its right and lower neighbor.
    const double first = 1 - a_.w, last = 2 * a_.w - 2;
    const auto begin = [&](double at) { return int64_t(std::clamp(std::floor(at / 2), first, last + 1)); };
    const auto end = [&](double at) { return int64_t(std::clamp(std::floor((at + 1) / 2), first - 1, last)); };
    return {begin(least[0]), end(most[0]), begin(least[1]), end(most[1])};
  }

  // The places of a row of samples.
  void find_places(int64_t n, int64_t y, const Window& window, std::vector<Place>& places) const {
    places.resize(size_);
    for (int64_t x = 0; x < size_; ++x) {
      double u, v;
      locate(n, x, y, u, v);
      u -= 2 * window.x0, v -= 2 * window.y0;
      // Far away, all is 0; the limits keep numbers small enough for integers.
      u = std::clamp(u, -2.0, 2.0 * window.width()), v = std::clamp(v, -2.0, 2.0 * window.height());
      const double left = std::floor(u), above = std::floor(v);
      places[x] = {int64_t(left), int64_t(above), S(u - left), S(v - above)};
    }
  }

  // ---- Pixels ----------------------------------------------------------------------------------------------------

  static void resize(std::vector<S>& values, int64_t pixels) { values.resize(pixels * kLanes); }
  static V get(const S* from) { return load<V>(from); }
  static void put(std::vector<S>& values, int64_t pixel, V value) { store(values.data() + pixel * kLanes, value); }

  // The pixel of the image that is seen at `i`, which may lie in a reflection; −1 where there is none.
  int64_t reflected(int64_t i) const {
    if (i <= -a_.w || i > 2 * a_.w - 2) return -1;
    return i < 0 ? -i : i < a_.w ? i : 2 * (a_.w - 1) - i;
  }

  int64_t channels(int64_t c) const { return std::min<int64_t>(kLanes, a_.c - c); }

  // Eight channels of the input, next to each other.
  void pack(int64_t n, int64_t c, std::vector<S>& pixels) const {
    const int64_t plane = a_.w * a_.w;
    const T* from = static_cast<const T*>(a_.x) + (n * a_.c + c) * plane;
    if (channels(c) < kLanes) std::fill(pixels.begin(), pixels.end(), S(0));
    for (int64_t channel = 0; channel < channels(c); ++channel, from += plane) {
      for (int64_t at = 0; at < plane; ++at) pixels[at * kLanes + channel] = static_cast<S>(from[at]);
    }
  }

  void unpack(int64_t n, int64_t c, const std::vector<S>& pixels) const {
    const int64_t plane = a_.w * a_.w;
    T* to = static_cast<T*>(a_.y) + (n * a_.c + c) * plane;
    for (int64_t channel = 0; channel < channels(c); ++channel, to += plane) {
      for (int64_t at = 0; at < plane; ++at) to[at] = static_cast<T>(pixels[at * kLanes + channel]);
    }
  }

  // The window with the pixels around it that the filter meets.
  void cut(int64_t n, int64_t c, const Window& w, std::vector<S>& pixels) const {
    const int64_t wide = w.width() + kTaps / 2, high = w.height() + kTaps / 2;
    resize(pixels, wide * high);
    std::fill(pixels.begin(), pixels.end(), S(0));
    const T* const image = static_cast<const T*>(a_.x) + (n * a_.c + c) * a_.w * a_.w;
    for (int64_t j = 0; j < high; ++j) {
      const int64_t y = reflected(w.y0 - kBefore + j);
      if (y < 0) continue;
      S* const to = pixels.data() + j * wide * kLanes;
      for (int64_t channel = 0; channel < channels(c); ++channel) {
        const T* const row = image + (channel * a_.w + y) * a_.w;
        for (int64_t i = 0; i < wide; ++i) {
          const int64_t x = reflected(w.x0 - kBefore + i);
          if (x >= 0) to[i * kLanes + channel] = static_cast<S>(row[x]);
        }
      }
    }
  }

  void add_cut(const Window& w, const std::vector<S>& pixels, std::vector<S>& image) const {
    const int64_t wide = w.width() + kTaps / 2, high = w.height() + kTaps / 2;
    for (int64_t j = 0; j < high; ++j) {
      const int64_t y = reflected(w.y0 - kBefore + j);
      if (y < 0) continue;
      for (int64_t i = 0; i < wide; ++i) {
        const int64_t x = reflected(w.x0 - kBefore + i);
        if (x < 0) continue;
        S* const to = image.data() + (y * a_.w + x) * kLanes;
        store(to, get(to) + get(pixels.data() + (j * wide + i) * kLanes));
      }
    }
  }

  // ---- Filters ---------------------------------------------------------------------------------------------------

  // The sum of kTaps pixels, `step` pixels apart, with the taps as weights.
  V sum(const S* from, int64_t step) const {
    V total = taps_[0] * get(from);
    for (int k = 1; k < kTaps; ++k) total += taps_[k] * get(from + k * step * kLanes);
    return total;
  }

  // Two samples of the enlarged picture, from the pixels that they meet, `step` pixels apart.
  void enlarge_pixel(const S* from, int64_t step, S* even, S* odd) const {
    constexpr int kMet = kTaps / 2;
    V first{}, second{};
    for (int j = 0; j <= kMet; ++j) {  // pixel i − kBefore + j
      const V pixel = get(from + j * step * kLanes);
      // Tap u + kCenter − 2·i meets pixel i.
      const int tap = kCenter + 2 * (kBefore - j);
      if (0 <= tap && tap < kTaps) first += 2 * taps_[tap] * pixel;
      if (0 <= tap + 1 && tap + 1 < kTaps) second += 2 * taps_[tap + 1] * pixel;
    }
    store(even, first);
    store(odd, second);
  }

  // pixels → enlarged, at twice the resolution.
  void enlarge(const Window& w, Buffers& b) const {
    const int64_t wide = w.width() + kTaps / 2, line = 2 * w.width() * kLanes;
    resize(b.column, 2 * w.height() * wide);
    resize(b.enlarged, 4 * w.width() * w.height());
    for (int64_t j = 0; j < w.height(); ++j) {
      S* const even = b.column.data() + 2 * j * wide * kLanes;
      S* const odd = even + wide * kLanes;
      for (int64_t i = 0; i < wide * kLanes; i += kLanes) {
        enlarge_pixel(b.pixels.data() + j * wide * kLanes + i, wide, even + i, odd + i);
      }
    }
    for (int64_t j = 0; j < 2 * w.height(); ++j) {
      S* const to = b.enlarged.data() + j * line;
      for (int64_t i = 0; i < w.width(); ++i) {
        enlarge_pixel(b.column.data() + (j * wide + i) * kLanes, 1, to + 2 * i * kLanes, to + (2 * i + 1) * kLanes);
      }
    }
  }

  // Adjoint of the above for one pixel of the picture: the sum of the samples that it is met by. count: of pairs of
  // samples; i: of the pixel, counted from that of the first pair − kBefore.
  V reduce_pixel(const S* samples, int64_t step, int64_t count, int64_t i) const {
    V total{};
    for (int64_t j = std::max<int64_t>(0, i - kTaps / 2); j <= std::min(i, count - 1); ++j) {
      const int tap = kCenter + 2 * (kBefore - int(i - j));
      const S* const pair = samples + 2 * j * step * kLanes;
      if (0 <= tap && tap < kTaps) total += 2 * taps_[tap] * get(pair);
      if (0 <= tap + 1 && tap + 1 < kTaps) total += 2 * taps_[tap + 1] * get(pair + step * kLanes);
    }
    return total;
  }

  // enlarged → pixels.
  void reduce(const Window& w, Buffers& b) const {
    const int64_t wide = w.width() + kTaps / 2, high = w.height() + kTaps / 2;
    resize(b.column, 2 * w.height() * wide);
    resize(b.pixels, wide * high);
    for (int64_t j = 0; j < 2 * w.height(); ++j) {
      const S* const from = b.enlarged.data() + j * 2 * w.width() * kLanes;
      for (int64_t i = 0; i < wide; ++i) put(b.column, j * wide + i, reduce_pixel(from, 1, w.width(), i));
    }
    for (int64_t j = 0; j < high; ++j) {
      for (int64_t i = 0; i < wide; ++i) {
        put(b.pixels, j * wide + i, reduce_pixel(b.column.data() + i * kLanes, wide, w.height(), j));
      }
    }
  }

  // Adjoint of `sum`, for row `at` of the samples: numbers of rows of results, `step` pixels apart, × taps.
  void spread(const S* results, int64_t step, int64_t at, S* to, int64_t count) const {
    const int64_t first = std::max<int64_t>(0, (at - kTaps + 2) / 2), last = std::min<int64_t>(at / 2, a_.w - 1);
    for (int64_t i = 0; i < count * kLanes; i += kLanes) {
      V total{};
      for (int64_t j = first; j <= last; ++j) total += taps_[at - 2 * j] * get(results + j * step * kLanes + i);
      store(to + i, total);
    }
  }

  // ---- Samples ---------------------------------------------------------------------------------------------------

  // Call function(offset in `enlarged`, weight) for the neighbors of a place that are in the window.
  template <typename F>
  static void each_neighbor(const Place& p, int64_t wide, int64_t high, F function) {
    const S weights[2][2] = {{(1 - p.right) * (1 - p.below), p.right * (1 - p.below)},
                             {(1 - p.right) * p.below, p.right * p.below}};
    const int64_t at = (p.y * wide + p.x) * kLanes;
    if (0 <= p.x && p.x + 1 < wide && 0 <= p.y && p.y + 1 < high) {
      for (int j = 0; j < 2; ++j) {
        for (int i = 0; i < 2; ++i) function(at + (j * wide + i) * kLanes, weights[j][i]);
      }
      return;
    }
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < 2; ++i) {
        const int64_t x = p.x + i, y = p.y + j;
        if (0 <= x && x < wide && 0 <= y && y < high) function(at + (j * wide + i) * kLanes, weights[j][i]);
      }
    }
  }

  // places, enlarged → row.
  void sample(const Window& w, Buffers& b) const {
    for (int64_t x = 0; x < size_; ++x) {
      V total{};
      each_neighbor(b.places[x], 2 * w.width(), 2 * w.height(),
                    [&](int64_t at, S weight) { total += weight * get(b.enlarged.data() + at); });
      put(b.row, x, total);
    }
  }

  // row, places → added to enlarged.
  void scatter(const Window& w, Buffers& b) const {
    for (int64_t x = 0; x < size_; ++x) {
      const V value = get(b.row.data() + x * kLanes);
      each_neighbor(b.places[x], 2 * w.width(), 2 * w.height(), [&](int64_t at, S weight) {
        S* const to = b.enlarged.data() + at;
        store(to, get(to) + weight * value);
      });
    }
  }

  const Warp a_;
  const int64_t size_;  // edge of the moved picture at twice the resolution
  S taps_[kTaps];
};

}  // namespace ops::cpu::warp

namespace ops::cpu {

inline void run_warp(const Warp& a) {
  if (a.n * a.c * a.w == 0) return;
  dispatch(a.dtype, [&](auto zero) { warp::Warper<decltype(zero)>(a).run(); });
}

}  // namespace ops::cpu
