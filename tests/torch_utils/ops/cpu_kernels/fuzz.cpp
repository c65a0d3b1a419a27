// Random cases of the CPU kernels against the equations of operators.h, evaluated in long double, and against
// themselves with other numbers of threads. What is wrong is printed; the exit code is the number of wrong cases.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>

#include "cpu/tail.h"
#include "cpu/upfirdn2d.h"
#include "cpu/warp.h"
#include "cpu/winograd.h"

namespace {

using ops::Activation;
using ops::DType;
using Number = long double;

std::mt19937_64 generator;

int64_t draw(int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(generator); }
bool chance(double p) { return std::bernoulli_distribution(p)(generator); }

template <typename T>
T pick(std::initializer_list<T> choices) {
  return choices.begin()[draw(0, int64_t(choices.size()) - 1)];
}

// Numbers in memory of their own, which ends with them; some may be NaN or infinite. Or none at all.
template <typename T>
struct Array {
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, &std::free};
  T* values = nullptr;
  int64_t size = 0;

  Array() = default;
  Array(int64_t size, bool wild) : size(size) {
    const int64_t offset = chance(0.5) ? 0 : draw(1, 5);  // from a multiple of a vector's size
    void* begin = nullptr;
    if (posix_memalign(&begin, 64, (offset + size) * sizeof(T))) std::abort();
    memory.reset(begin);
    values = static_cast<T*>(begin) + offset;
    for (int64_t i = 0; i < size; ++i) {
      values[i] = static_cast<T>(std::normal_distribution<float>()(generator));
      if (wild && chance(0.01)) values[i] = static_cast<T>(pick({0.0F, NAN, INFINITY, -INFINITY}));
    }
  }
  Number operator()(int64_t i, Number otherwise) const { return values ? static_cast<Number>(values[i]) : otherwise; }
};

bool close(Number found, Number expected, Number tolerance) {
  if (std::isnan(found) || std::isnan(expected)) return std::isnan(found) && std::isnan(expected);
  if (std::isinf(found) || std::isinf(expected)) return found == expected;
  return std::abs(found - expected) <= tolerance * std::max<Number>(1, std::abs(expected));
}

template <typename T>
bool tail_is_right(DType dtype, Number tolerance) {
  using S = ops::cpu::Compute<T>;
  ops::Tail tail{};
  tail.dtype = dtype;
  tail.order = draw(0, 3) ? 0 : 1;
  tail.activation = pick({Activation::linear, Activation::lrelu, Activation::lrelu});
  tail.alpha = pick({0.2, 0.2, 0.2, 0.0, 1.0, 1.5, -0.5});
  tail.gain = pick({1.4, 1.4, 1.0, 0.0, -1.3});
  tail.limit = pick({double(INFINITY), double(INFINITY), 1.0, 0.5, -0.0});
  tail.n = draw(1, 3), tail.c = pick<int64_t>({1, 3, 4, 5, 16, 18, 32, 48, 64, 67});
  tail.p = pick<int64_t>({1, 15, 16, 63, 64, 65, 256, 300, 1024, 2049, 2304});
  tail.channels_last = chance(0.5);
  const bool wild = tail.order == 0 && chance(0.3);
  tail.x_is_output = tail.order == 1 && chance(0.3);
  const auto operand = [&](int64_t size) {
    return !tail.x_is_output && chance(0.7) ? Array<S>(size, wild) : Array<S>();
  };
  const bool shared = chance(0.5);
  tail.noise_stride = shared ? 0 : tail.p;
  const int64_t size = tail.n * tail.c * tail.p;
  const Array<T> x(size, wild), dy(size, false);
  const Array<S> scale = operand(tail.n * tail.c), noise = operand((shared ? 1 : tail.n) * tail.p);
  const Array<S> strength = noise.values ? operand(1) : Array<S>(), bias = operand(tail.c);
  Array<T> out(size, false);
  const int64_t chunks = ops::cpu::tail_chunks(tail), plane = tail.n * tail.c;
  const bool summed = tail.order == 1 && chance(0.7);
  Array<S> sums = summed ? Array<S>(3 * chunks * plane, false) : Array<S>();
  tail.x = x.values, tail.dy = dy.values, tail.out = out.values, tail.sums = sums.values;
  tail.scale = scale.values, tail.noise = noise.values, tail.strength = strength.values, tail.bias = bias.values;

  std::string name = "tail order " + std::to_string(tail.order) + " act " + std::to_string(int(tail.activation));
  for (double v : {tail.alpha, tail.gain, tail.limit, double(tail.n), double(tail.c), double(tail.p)}) {
    name += " " + std::to_string(v);
  }
  name += tail.channels_last ? " channels last" : " contiguous";
  std::unique_ptr<T[]> first;
  for (const int64_t threads : {1, 2, 3, 5}) {
    at::simulated_threads = threads;
    std::fill_n(out.values, size, static_cast<T>(NAN));
    ops::cpu::run_tail(tail);
    if (!first) {
      first.reset(new T[size]);
      std::copy_n(out.values, size, first.get());
    } else if (std::memcmp(first.get(), out.values, size * sizeof(T)) != 0) {
      std::printf("%s: %d threads make a difference\n", name.c_str(), int(threads));
      return false;
    }
  }

  const Number slope_below = tail.activation == Activation::linear ? 1 : S(tail.alpha);
  const Number gain = S(tail.gain), limit = S(tail.limit);
  std::vector<Number> totals(3 * plane, 0), doubts(3 * plane, 0);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t n = i / (tail.c * tail.p), at = i % (tail.c * tail.p);
    const int64_t c = tail.channels_last ? at % tail.c : at / tail.p;
    const int64_t p = tail.channels_last ? at / tail.c : at % tail.p;
    const int64_t nc = n * tail.c + c;
    const Number a = x(i, 0), d = scale(nc, 1), e = noise(n * tail.noise_stride + p, 0), s = strength(0, 1);
    const Number u = a * d + e * s + bias(c, 0);
    const Number act = u <= 0 ? u * slope_below : u;  // NaN stays NaN
    const Number y = tail.x_is_output ? a : act * gain, m = gain * (u > 0 ? Number(1) : slope_below);
    Number expected;
    if (tail.order == 0) {
      expected = std::isnan(y) ? y : std::min(limit, std::max(-limit, y));
    } else {
      // Near a kink the slope is either.
      const bool doubtful = std::abs(u) < 1e-4 || std::abs(std::abs(y) - limit) < 1e-4;
      const Number g = std::abs(y) > limit ? Number(0) : dy(i, 0) * m, factors[] = {a, e, 1};
      for (int64_t s = 0; s < 3; ++s) {
        totals[s * plane + nc] += g * factors[s];
        const Number doubt = doubtful ? dy(i, 0) * gain * std::max<Number>(1, std::abs(slope_below)) : tolerance * g;
        doubts[s * plane + nc] += std::abs(doubt * factors[s]);
      }
      if (doubtful) continue;
      expected = g * d;
    }
    if (!close(out(i, 0), expected, tolerance)) {
      std::printf("%s: at %lld: %Lg, expected %Lg\n", name.c_str(), static_cast<long long>(i), out(i, 0), expected);
      return false;
    }
  }
  for (int64_t i = 0; summed && i < 3 * plane; ++i) {
    if (tail.x_is_output && i < 2 * plane) continue;  // there is nothing that they would be for
    Number found = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) found += sums((i / plane * chunks + chunk) * plane + i % plane, 0);
    if (!(std::abs(found - totals[i]) <= doubts[i] + tolerance)) {
      std::printf("%s: sum %lld: %Lg, expected %Lg\n", name.c_str(), static_cast<long long>(i), found, totals[i]);
      return false;
    }
  }
  return true;
}

template <typename T>
bool filter_is_right(DType dtype, Number tolerance) {
  using S = ops::cpu::Compute<T>;
  ops::Filter filter{};
  filter.dtype = dtype;
  filter.n = draw(1, 2), filter.c = pick<int64_t>({1, 3, 16, 19, 24, 48, 64, 80});
  filter.in_h = draw(1, 20), filter.in_w = draw(1, 40);
  filter.channels_last = chance(0.5);
  filter.filter_h = int(draw(1, 6)), filter.filter_w = int(draw(1, 6));
  filter.up_x = int(draw(1, 3)), filter.up_y = int(draw(1, 3)), filter.down_x = int(draw(1, 3));
  filter.down_y = int(draw(1, 3));
  filter.pad_x = draw(-2, 5), filter.pad_y = draw(-2, 5);
  filter.flip = chance(0.5), filter.gain = 1.5;
  filter.out_h = draw(1, 25), filter.out_w = draw(1, 50);
  const bool usual = chance(0.6);  // four by four taps that are a product, and mostly the usual padding
  if (usual) {
    const int up = int(draw(1, 2)), down = up == 1 ? int(draw(1, 2)) : 1;
    filter.filter_h = filter.filter_w = 4;
    filter.up_x = filter.up_y = up, filter.down_x = filter.down_y = down;
    filter.in_w = pick<int64_t>({4, 16, 32, 33, 48, 64, 96});
    if (chance(0.8)) filter.pad_x = filter.pad_y = up == 2 ? 2 : 1;
    if (chance(0.8)) filter.out_w = std::max<int64_t>(1, filter.in_w * up / down);
    if (chance(0.8)) filter.out_h = std::max<int64_t>(1, filter.in_h * up / down);
  }
  const Array<T> x(filter.n * filter.c * filter.in_h * filter.in_w, false);
  Array<S> f(filter.filter_h * filter.filter_w, false);
  for (int64_t i = 0; usual && i < f.size; ++i) f.values[i] = S(i / 4 + 1) * S(i % 4 - 1.5);
  Array<T> y(filter.n * filter.c * filter.out_h * filter.out_w, false);
  filter.x = x.values, filter.f = f.values, filter.y = y.values;
  at::simulated_threads = draw(1, 4);
  ops::cpu::run_upfirdn2d(filter);
  for (int64_t i = 0; i < y.size; ++i) {
    const int64_t pixels = filter.out_h * filter.out_w, n = i / (filter.c * pixels), at = i % (filter.c * pixels);
    const int64_t c = filter.channels_last ? at % filter.c : at / pixels;
    const int64_t pixel = filter.channels_last ? at / filter.c : at % pixels;
    Number expected = 0, magnitude = 1;
    for (int64_t tap = 0; tap < f.size; ++tap) {
      const int64_t row = pixel / filter.out_w * filter.down_y + tap / filter.filter_w - filter.pad_y;
      const int64_t column = pixel % filter.out_w * filter.down_x + tap % filter.filter_w - filter.pad_x;
      if (row < 0 || column < 0 || row % filter.up_y || column % filter.up_x) continue;
      const int64_t h = row / filter.up_y, w = column / filter.up_x;
      if (h >= filter.in_h || w >= filter.in_w) continue;
      const int64_t from = filter.channels_last ? ((n * filter.in_h + h) * filter.in_w + w) * filter.c + c
                                                : ((n * filter.c + c) * filter.in_h + h) * filter.in_w + w;
      const Number term = f(filter.flip ? tap : f.size - 1 - tap, 0) * x(from, 0) * filter.gain;
      expected += term, magnitude += std::abs(term);
    }
    if (!(std::abs(y(i, 0) - expected) <= tolerance * magnitude)) {
      std::printf("upfirdn2d up %d %d down %d %d: %Lg, expected %Lg\n", filter.up_x, filter.up_y, filter.down_x,
                  filter.down_y, y(i, 0), expected);
      return false;
    }
  }
  return true;
}

// A convolution and the gradient of its weight, for channels that run along with the taps or across.
bool convolution_is_right() {
  ops::cpu::Convolution a{};
  a.n = draw(0, 3), a.h = draw(1, 14), a.w = draw(1, 14);
  a.in = 16 * draw(1, 3), a.out = 16 * draw(1, 3);
  const int64_t pixels = a.n * a.h * a.w;
  const Array<float> x(pixels * a.in, false), f(9 * a.in * a.out, false), dy(pixels * a.out, false);
  Array<float> y(pixels * a.out, false), df(9 * a.in * a.out, false);
  const bool last = chance(0.5);  // channels last
  const int64_t strides[4] = {9 * a.in, last ? 1 : 9, last ? 3 * a.in : 3, last ? a.in : 1};
  std::copy_n(strides, 4, a.f_strides);
  a.x = x.values, a.f = f.values, a.df = df.values, a.y = y.values, a.dy = dy.values;

  std::unique_ptr<float[]> first;
  for (const int64_t threads : {1, 3}) {
    at::simulated_threads = threads;
    Array<float> weight(ops::cpu::winograd::kPoints * a.in * a.out, false);
    std::fill_n(y.values, y.size, NAN);
    a.at_points = weight.values;
    ops::cpu::run_convolution(a);
    if (!first) {
      first.reset(new float[y.size]);
      std::copy_n(y.values, y.size, first.get());
    } else if (std::memcmp(first.get(), y.values, y.size * sizeof(float)) != 0) {
      std::printf("convolution: %d threads make a difference\n", int(threads));
      return false;
    }
  }
  at::simulated_threads = draw(1, 5);
  const int64_t parts = ops::cpu::weight_gradient_shares(a);
  Array<float> gradient(parts * ops::cpu::winograd::kPoints * a.in * a.out, false);
  std::fill_n(df.values, df.size, NAN);
  a.at_points = gradient.values;
  ops::cpu::run_weight_gradient(a);

  // Some of the results: all would take long. Taps that meet no pixel are among those of df.
  const auto fails = [&](const char* what, Number found, Number expected, Number magnitude) {
    if (std::abs(found - expected) <= 1e-5L * magnitude) return false;  // other pixels of the tile round as well
    std::printf("%s of %dx%d pixels, %d to %d channels: %Lg, expected %Lg\n", what, int(a.h), int(a.w), int(a.in),
                int(a.out), found, expected);
    return true;
  };
  for (int i = 0; i < 60; ++i) {
    const int64_t o = draw(0, a.out - 1);
    if (pixels > 0) {
      const int64_t n = draw(0, a.n - 1), row = draw(0, a.h - 1), column = draw(0, a.w - 1);
      Number expected = 0, magnitude = 1;
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t from_row = row + tap / 3 - 1, from_column = column + tap % 3 - 1;
        if (from_row < 0 || from_row >= a.h || from_column < 0 || from_column >= a.w) continue;
        for (int64_t c = 0; c < a.in; ++c) {
          const Number term = x(((n * a.h + from_row) * a.w + from_column) * a.in + c, 0) *
                              f(o * strides[0] + c * strides[1] + tap / 3 * strides[2] + tap % 3 * strides[3], 0);
          expected += term, magnitude += std::abs(term);
        }
      }
      if (fails("convolution", y(((n * a.h + row) * a.w + column) * a.out + o, 0), expected, magnitude)) return false;
    }
    const int64_t c = draw(0, a.in - 1), tap = draw(0, 8);
    Number expected = 0, magnitude = 1;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const int64_t row = pixel / a.w % a.h + tap / 3 - 1, column = pixel % a.w + tap % 3 - 1;
      if (row < 0 || row >= a.h || column < 0 || column >= a.w) continue;
      const Number term = dy(pixel * a.out + o, 0) *
                          x(((pixel / (a.h * a.w) * a.h + row) * a.w + column) * a.in + c, 0);
      expected += term, magnitude += std::abs(term);
    }
    const int64_t at = o * strides[0] + c * strides[1] + tap / 3 * strides[2] + tap % 3 * strides[3];
    if (fails("weight's gradient", df(at, 0), expected, magnitude)) return false;
  }
  return true;
}

// D S U R of one picture, step by step.
std::vector<Number> warped(const std::vector<Number>& x, const double* m, const double* taps, int64_t w) {
  constexpr int kTaps = ops::Warp::kTaps, kCenter = ops::Warp::kCenter;
  const int64_t padded = 3 * w - 2, edge = 2 * padded, size = 2 * w + kTaps - 2;
  const auto reflected = [&](int64_t i) { return w - 1 - std::abs(w - 1 - std::abs(i - (w - 1))); };
  std::vector<Number> enlarged(edge * edge, 0), samples(size * size, 0), y(w * w, 0);
  for (int64_t j = 0; j < padded; ++j) {
    for (int64_t i = 0; i < padded; ++i) {
      for (int64_t k = 0; k < kTaps * kTaps; ++k) {
        const int64_t v = 2 * j + k / kTaps - kCenter, u = 2 * i + k % kTaps - kCenter;
        if (v < 0 || v >= edge || u < 0 || u >= edge) continue;
        enlarged[v * edge + u] += 4 * Number(taps[k / kTaps]) * taps[k % kTaps] * x[reflected(j) * w + reflected(i)];
      }
    }
  }
  for (int64_t q = 0; q < size * size; ++q) {
    const Number x0 = (q % size - kCenter) / 2.0L, y0 = (q / size - kCenter) / 2.0L;
    const Number u = 2 * (m[0] * x0 + m[1] * y0 + m[2] + w - 1), v = 2 * (m[3] * x0 + m[4] * y0 + m[5] + w - 1);
    for (int k = 0; k < 4; ++k) {
      const Number column = std::floor(u) + k % 2, row = std::floor(v) + k / 2;
      if (!(0 <= column && column < edge && 0 <= row && row < edge)) continue;
      samples[q] += (1 - std::abs(u - column)) * (1 - std::abs(v - row)) * enlarged[int64_t(row) * edge + int64_t(column)];
    }
  }
  for (int64_t at = 0; at < w * w; ++at) {
    for (int64_t k = 0; k < kTaps * kTaps; ++k) {
      const int64_t row = 2 * (at / w) + k / kTaps, column = 2 * (at % w) + k % kTaps;
      y[at] += Number(taps[k / kTaps]) * taps[k % kTaps] * samples[row * size + column];
    }
  }
  return y;
}

template <typename T>
bool warp_is_right(DType dtype, Number tolerance) {
  ops::Warp a{};
  a.dtype = dtype;
  a.n = draw(1, 2), a.c = pick<int64_t>({1, 3, 8, 9, 16}), a.w = draw(1, 7), a.adjoint = chance(0.5);
  Array<double> maps(a.n * 6, false), taps(ops::Warp::kTaps, false);
  for (int64_t i = 0; i < taps.size; ++i) taps.values[i] /= 4;
  for (int64_t i = 0; chance(0.7) && i < maps.size; ++i) maps.values[i] *= pick({1.0, 1.0, 5.0, 1e5});
  if (chance(0.2)) std::copy_n(std::initializer_list<double>{1, 0, 0, 0, 1, 0}.begin(), 6, maps.values);
  const Array<T> x(a.n * a.c * a.w * a.w, false);
  Array<T> y(x.size, false);
  a.maps = maps.values, a.taps = taps.values, a.x = x.values, a.y = y.values;
  at::simulated_threads = draw(1, 4);
  std::fill_n(y.values, y.size, static_cast<T>(NAN));
  ops::cpu::run_warp(a);
  const int64_t pixels = a.w * a.w;
  const std::vector<double> identity = {1, 0, 0, 0, 1, 0};
  for (int64_t plane = 0; plane < a.n * a.c; ++plane) {
    const double* m = maps.values + plane / a.c * 6;
    const bool stays = std::equal(identity.begin(), identity.end(), m);
    std::vector<Number> given(pixels);
    for (Number& number : given) number = std::normal_distribution<double>()(generator);
    for (int64_t i = 0; !a.adjoint && i < pixels; ++i) given[i] = x(plane * pixels + i, 0);
    const std::vector<Number> expected = stays ? given : warped(given, m, taps.values, a.w);
    // Of the adjoint, the product with `given`.
    Number found = 0, wanted = 0, magnitude = 1;
    for (int64_t i = 0; i < pixels; ++i) {
      const Number in = x(plane * pixels + i, 0), out = y(plane * pixels + i, 0);
      found = a.adjoint ? found + out * given[i] : out, wanted = a.adjoint ? wanted + in * expected[i] : expected[i];
      magnitude += std::abs(out) + std::abs(expected[i]);
      const bool last = !a.adjoint || i == pixels - 1;
      if (last && !(std::abs(found - wanted) <= 20 * tolerance * magnitude)) {
        std::printf("warp%s of %d pixels: %Lg, expected %Lg\n", a.adjoint ? " back" : "", int(a.w), found, wanted);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

template <typename T>
int wrong(DType dtype, Number tolerance) {
  return !tail_is_right<T>(dtype, tolerance) + !filter_is_right<T>(dtype, tolerance) +
         !warp_is_right<T>(dtype, tolerance);
}

int main(int, char** arguments) {
  int count = 0;
  for (int seed = 0; seed < std::atoi(arguments[1]); ++seed) {
    generator.seed(seed);
    count += wrong<float>(DType::float32, 1e-5L) + wrong<double>(DType::float64, 1e-12L);
    count += wrong<c10::Half>(DType::float16, 2e-3L) + wrong<c10::BFloat16>(DType::bfloat16, 1e-2L);
    count += !convolution_is_right();
  }
  return std::min(count, 100);
}
