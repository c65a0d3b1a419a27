// Upsample, pad, filter, downsample on the CPU; operators.h says what it computes.
//
// Everything is a weighted sum of rows. Down the picture, rows of the input are summed into one; along that row, the
// row is summed with itself, shifted by one pixel a tap. With channels last, a pixel is `channels` neighbors wide;
// else it is one number, and each channel a picture of its own.
#pragma once

#include "common.h"

namespace ops::cpu {

// Which taps meet samples of the input, along one axis: tap `first` + j·up meets sample `sample` + j.
struct Meeting {
  int64_t sample;
  int first, taps;
};

inline Meeting meeting(int64_t out, int up, int down, int64_t pad, int filter) {
  const int64_t place = out * down - pad;  // of tap 0, in the upsampled picture without padding
  const int first = static_cast<int>((up - place % up) % up);
  return {(place + first) / up, first, first < filter ? (filter - 1 - first) / up + 1 : 0};
}

// How far ahead, in numbers, to ask memory for input.
constexpr int64_t kAhead = 1024;

template <typename S>
struct Taps {
  int height, width;
  std::vector<S> matrix;       // [height][width], as a correlation, with the gain
  std::vector<S> column, row;  // its factors, empty where it has none

  explicit Taps(const Filter& a) : height(a.filter_h), width(a.filter_w), matrix(int64_t(height) * width) {
    const S* f = static_cast<const S*>(a.f);
    const int64_t size = matrix.size();
    for (int64_t i = 0; i < size; ++i) matrix[i] = S(a.gain) * f[a.flip ? i : size - 1 - i];
    factorize();
  }

 private:
  // A matrix of rank one is the product of the column and the row that its largest entry is in.
  void factorize() {
    int64_t pivot = 0;
    for (int64_t i = 0; i < int64_t(matrix.size()); ++i) {
      if (std::abs(matrix[i]) > std::abs(matrix[pivot])) pivot = i;
    }
    const S largest = matrix[pivot];
    if (!(std::abs(largest) > 0)) return;
    std::vector<S> y(height), x(width);
    for (int i = 0; i < height; ++i) y[i] = matrix[i * width + pivot % width];
    for (int j = 0; j < width; ++j) x[j] = matrix[pivot / width * width + j] / largest;
    for (int64_t i = 0; i < int64_t(matrix.size()); ++i) {
      const S error = std::abs(matrix[i] - y[i / width] * x[i % width]);
      if (!(error <= 8 * std::numeric_limits<S>::epsilon() * std::abs(largest))) return;
    }
    column = std::move(y), row = std::move(x);
  }
};

// kPixel: numbers a pixel. kUp, kDown: alike along both axes. All are 0 where known at run time only; the usual values
// are compiled in, and go with kTaps × kTaps taps.
template <typename T, int kPixel, int kUp, int kDown>
class RowFilter {
  using S = Compute<T>;
  static constexpr bool kUsual = kUp > 0;
  static constexpr int kTaps = 4;
  static constexpr int kMet = kUsual ? kTaps / kUp : 0;  // taps that meet samples, along each axis
  static constexpr bool kWholeRows = kUsual && kUp * kDown == 2 && std::is_same_v<T, S>;  // filter_whole is there
  using V = Vector<S>;
  static constexpr int kLanes = sizeof(V) / sizeof(S);
  static constexpr auto kAll = std::make_index_sequence<kLanes>();

 public:
  explicit RowFilter(const Filter& a)
      : a_(a),
        pixel_(a.channels_last ? a.c : 1),
        planes_(a.channels_last ? a.n : a.n * a.c),
        large_(2 * a.n * a.c * a.in_h * a.in_w * int64_t(sizeof(T)) >= kCaches),
        taps_(a) {
    for (int r = 0; r < std::min<int64_t>(a.up_x, a.out_w); ++r) {
      phases_.push_back(meeting(r, a.up_x, a.down_x, a.pad_x, a.filter_w));
    }
    first_ = last_ = phases_[0].sample;
    for (int64_t x = std::max<int64_t>(0, a.out_w - a.up_x); x < a.out_w; ++x) {
      const Meeting m = meeting(x, a.up_x, a.down_x, a.pad_x, a.filter_w);
      last_ = std::max(last_, m.sample + m.taps);
    }
    if constexpr (kUsual) {
      if (!separable()) return;
      for (int r = 0; r < kUp; ++r) {
        const Meeting down = meeting(r, kUp, kDown, a.pad_y, kTaps), along = meeting(r, kUp, kDown, a.pad_x, kTaps);
        shift_[r] = along.sample - first_;
        for (int j = 0; j < kMet; ++j) {
          column_[r][j] = taps_.column[down.first + j * kUp];
          row_[r][j] = taps_.row[along.first + j * kUp];
        }
      }
      whole_ = kWholeRows &&
               (pixel_ == 1 ? a.in_w % (kDown * kLanes) == 0 : a.in_w % kDown == 0 && pixel_ % kLanes == 0) &&
               a.in_w * kUp == a.out_w * kDown && first_ == -1 && shift_[kUp - 1] == kUp - 1;
    }
  }

  bool separable() const { return !taps_.column.empty(); }

  void run() const {
    const int64_t rows = std::max<int64_t>(1, kGrain / (a_.out_w * pixel_));
    const int64_t blocks = (a_.out_h + rows - 1) / rows;
    const int64_t worthwhile = kGrain / (std::min(rows, a_.out_h) * a_.out_w * pixel_);
    at::parallel_for(0, planes_ * blocks, std::max<int64_t>(1, worthwhile), [&](int64_t begin, int64_t end) {
      static thread_local Buffers buffers;  // kept, so as not to take memory in every call
      buffers.prepare(*this);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t plane = item / blocks, y0 = item % blocks * rows;
        const int64_t y1 = std::min(a_.out_h, y0 + rows);
        if constexpr (kWholeRows) {
          if (whole_) {
            for (int64_t y = y0; y < y1; ++y) {
              if (kDown == 2 && large_) filter_whole<kDown == 2>(plane, y, buffers);
              else filter_whole<false>(plane, y, buffers);
            }
            continue;
          }
        }
        if constexpr (kUsual) {
          for (int64_t y = y0; y < y1; y += buffers.batch) {
            const int64_t batch = std::min(buffers.batch, y1 - y);
            sum_rows_usual(plane, y, batch, buffers);
            sum_along_usual(plane, y, batch, buffers);
          }
        } else {
          for (int64_t y = y0; y < y1; ++y) filter_row(plane, y, buffers);
        }
      }
    });
  }

 private:
  // Numbers in a row of the pixels that the filter reads.
  int64_t pitch() const { return (last_ - first_) * pixel_; }

  struct Buffers {
    // Rows that are read soon after they are written, at other alignments, keep the processor waiting: narrow ones are
    // therefore summed in batches.
    int64_t batch;
    std::vector<S> row;  // the pixels [first_, last_) of `batch` rows, zeros outside of the picture
    std::vector<S> out;
    std::vector<T> nothing;  // stands for rows outside of the picture

    void prepare(const RowFilter& f) {
      nothing.assign(f.a_.in_w * f.pixel_, T(0));
      if (f.whole_) return;  // the others are not used
      batch = kUsual ? std::clamp<int64_t>(2048 / std::max<int64_t>(1, f.pitch()), 1, 16) : 1;
      row.assign(batch * f.pitch(), S(0));
      out.resize(f.a_.out_w * f.pixel_);
    }
  };

  T* output(int64_t plane, int64_t y) const {
    return static_cast<T*>(a_.y) + (plane * a_.out_h + y) * a_.out_w * pixel_;
  }

  // The columns that the picture has, of those that the filter reads.
  std::pair<int64_t, int64_t> columns() const {
    const int64_t x0 = std::clamp<int64_t>(first_, 0, a_.in_w);
    return {x0, std::clamp<int64_t>(last_, x0, a_.in_w)};
  }

  // Row `y` of the input, from column x0 on.
  const T* input(int64_t plane, int64_t y, int64_t x0, const Buffers& b) const {
    const T* rows = static_cast<const T*>(a_.x) + plane * a_.in_h * a_.in_w * pixel_;
    return x0 * pixel_ + (0 <= y && y < a_.in_h ? rows + y * a_.in_w * pixel_ : b.nothing.data());
  }

  // For `count` rows of the output, from row y on: sum the rows of the input that belong to each.
  void sum_rows_usual(int64_t plane, int64_t y, int64_t count, Buffers& b) const {
    const auto [x0, x1] = columns();
    const int64_t width = (x1 - x0) * pixel_, size = a_.in_w * pixel_;
    if (width == 0) return;
    const T* const first = static_cast<const T*>(a_.x) + plane * a_.in_h * size + x0 * pixel_;
    S* out = b.row.data() + (x0 - first_) * pixel_;
    for (int64_t j = 0; j < count; ++j, out += pitch()) {
      const int64_t sample = meeting(y + j, kUp, kDown, a_.pad_y, kTaps).sample;
      const bool inside = 0 <= sample && sample + kMet <= a_.in_h;
      const T* rows[kMet];
      for (int k = 0; k < kMet; ++k) rows[k] = inside ? first + (sample + k) * size : input(plane, sample + k, x0, b);
      sum_rows<kMet>(out, width, rows, column_[(y + j) % kUp]);
    }
  }

  // A row of the output, where neither the first nor the last output meets more than one sample outside of the picture,
  // and pixels, or rows of one number a pixel, fill whole vectors: what is summed down the picture stays in registers.
  //
  // kAsks: memory for input to come; a processor that sees several rows being read at once does not foresee it.
  template <bool kAsks>
  void filter_whole(int64_t plane, int64_t y, const Buffers& b) const {
    const int64_t sample = meeting(y, kUp, kDown, a_.pad_y, kTaps).sample;
    const T* rows[kMet];
    for (int k = 0; k < kMet; ++k) rows[k] = input(plane, sample + k, 0, b);
    const S* const taps = column_[y % kUp];
    const auto down = [&](int64_t at) __attribute__((always_inline)) {
      for (int k = kMet - kDown; kAsks && k < kMet; ++k) {  // of rows that the last row did not read
        __builtin_prefetch(rows[k] + at + kAhead, /* to write: */ 0, /* to keep in caches: */ 2);
      }
      V sum = taps[0] * load<V>(rows[0] + at);
      for (int k = 1; k < kMet; ++k) sum += taps[k] * load<V>(rows[k] + at);
      return sum;
    };
    T* const out = output(plane, y);
    if constexpr (kPixel == 1) {
      filter_neighbors(down, out);
    } else {
      constexpr int kMost = kVectorBytes == 64 ? 4 : 2;  // as there are registers for
      int64_t channel = 0;
      for (; channel + kMost * kLanes <= pixel_; channel += kMost * kLanes) filter_pixels<kMost>(down, out, channel);
      for (; channel < pixel_; channel += kLanes) filter_pixels<1>(down, out, channel);
    }
  }

  // Along numbers that are pixels.
  template <typename Down>
  __attribute__((always_inline)) void filter_neighbors(const Down& down, T* out) const {
    if constexpr (kUp == 2) {
      V before{}, now = down(0);
      for (int64_t x = kLanes; x <= a_.in_w; x += kLanes, out += 2 * kLanes) {
        const V after = x < a_.in_w ? down(x) : V{};
        const V even = row_[0][0] * pick<kLanes - 1, 1>(before, now, kAll) + row_[0][1] * now;
        const V odd = row_[1][0] * now + row_[1][1] * pick<1, 1>(now, after, kAll);
        store(out, interleave<0>(even, odd, kAll));
        store(out + kLanes, interleave<1>(even, odd, kAll));
        before = now, now = after;
      }
    } else {
      struct Pair {
        V even{}, odd{};
      };
      const auto pair = [&](int64_t x) __attribute__((always_inline)) {
        const V left = down(x), right = down(x + kLanes);
        return Pair{pick<0, 2>(left, right, kAll), pick<1, 2>(left, right, kAll)};
      };
      Pair before, now = pair(0);
      for (int64_t x = 2 * kLanes; x <= a_.in_w; x += 2 * kLanes, out += kLanes) {
        const Pair after = x < a_.in_w ? pair(x) : Pair();
        store(out, row_[0][0] * pick<kLanes - 1, 1>(before.odd, now.odd, kAll) + row_[0][1] * now.even +
                       (row_[0][2] * now.odd + row_[0][3] * pick<1, 1>(now.even, after.even, kAll)));
        before = now, now = after;
      }
    }
  }

  // Along pixels, some of their channels.
  template <int kVectors, typename Down>
  __attribute__((always_inline)) void filter_pixels(const Down& down, T* out, int64_t channel) const {
    const int64_t pixel = kPixel ? kPixel : pixel_;
    V before[kVectors]{}, now[kVectors], after[kVectors];
    for (int v = 0; v < kVectors; ++v) now[v] = down(channel + v * kLanes);
    out += channel;
    for (int64_t x = kDown; x <= a_.in_w; x += kDown, out += kUp * pixel) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = x * pixel + channel + v * kLanes;
        after[v] = x < a_.in_w ? down(at) : V{};
        if constexpr (kUp == 2) {
          store(out + v * kLanes, row_[0][0] * before[v] + row_[0][1] * now[v]);
          store(out + v * kLanes + pixel, row_[1][0] * now[v] + row_[1][1] * after[v]);
          before[v] = now[v];
        } else {
          const V between = down(at - pixel);
          store(out + v * kLanes,
                row_[0][0] * before[v] + row_[0][1] * now[v] + (row_[0][2] * between + row_[0][3] * after[v]));
          before[v] = between;
        }
        now[v] = after[v];
      }
    }
  }

  // A row of the output, for any filter and factors.
  void filter_row(int64_t plane, int64_t y, Buffers& b) const {
    const auto [x0, x1] = columns();
    const int64_t count = (x1 - x0) * pixel_;
    S* middle = count ? b.row.data() + (x0 - first_) * pixel_ : nullptr;
    const Meeting m = meeting(y, a_.up_y, a_.down_y, a_.pad_y, a_.filter_h);
    std::fill(b.out.begin(), b.out.end(), S(0));
    std::fill_n(middle, count, S(0));
    for (int j = 0; j < m.taps; ++j) {
      const int tap = m.first + j * a_.up_y;
      const T* row = input(plane, m.sample + j, x0, b);
      if (separable()) {
        add_row(middle, count, row, taps_.column[tap]);
      } else {
        std::fill_n(middle, count, S(0));
        add_row(middle, count, row, S(1));
        add_along(b.out.data(), b.row.data(), &taps_.matrix[int64_t(tap) * taps_.width]);
      }
    }
    if (separable()) add_along(b.out.data(), b.row.data(), taps_.row.data());
    T* out = output(plane, y);
    for (int64_t i = 0; i < a_.out_w * pixel_; ++i) out[i] = static_cast<T>(b.out[i]);
  }

  template <int kRows>
  static void sum_rows(S* __restrict out, int64_t count, const T* const* rows, const S* weights) {
    const T *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[kRows > 2 ? 2 : 0],
            *__restrict d = rows[kRows > 2 ? 3 : 0];
    const S wa = weights[0], wb = weights[1], wc = kRows > 2 ? weights[2] : 0, wd = kRows > 2 ? weights[3] : 0;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const S sum = wa * static_cast<S>(a[i]) + wb * static_cast<S>(b[i]);
      out[i] = kRows > 2 ? sum + (wc * static_cast<S>(c[i]) + wd * static_cast<S>(d[i])) : sum;
    }
  }

  static void add_row(S* __restrict out, int64_t count, const T* __restrict row, S weight) {
    for (int64_t i = 0; i < count; ++i) out[i] += weight * static_cast<S>(row[i]);
  }

  // Filter those sums along themselves, into the output.
  void sum_along_usual(int64_t plane, int64_t y, int64_t count, Buffers& b) const {
    const int64_t pixel = kPixel ? kPixel : pixel_, groups = a_.out_w / kUp, numbers = a_.out_w * pixel;
    for (int64_t j = 0; j < count; ++j) {
      T* const target = output(plane, y + j);
      S* __restrict out;
      if constexpr (std::is_same_v<S, T>) out = target;
      else out = b.out.data();
      const S* row = b.row.data() + j * pitch();
      if constexpr (kPixel == 1) {  // along the row is along the neighbors
        sum_neighbors(out, row + shift_[0], row + shift_[kUp - 1], groups);
      } else {
        for (int64_t i = 0; i < groups; ++i) {
          for (int r = 0; r < kUp; ++r) {
            sum_pixel<kMet>(out + (i * kUp + r) * pixel, row + (shift_[r] + i * kDown) * pixel, row_[r], pixel);
          }
        }
      }
      if (a_.out_w % kUp) {
        sum_pixel<kMet>(out + groups * kUp * pixel, row + (shift_[0] + groups * kDown) * pixel, row_[0], pixel);
      }
      if constexpr (!std::is_same_v<S, T>) {
        for (int64_t i = 0; i < numbers; ++i) target[i] = static_cast<T>(out[i]);
      }
    }
  }

  void sum_neighbors(S* __restrict out, const S* __restrict first, const S* __restrict second, int64_t count) const {
    const S a0 = row_[0][0], a1 = row_[0][1];
    const S b0 = kUp == 2 ? row_[kUp - 1][0] : row_[0][kMet - 2], b1 = row_[kUp - 1][kMet - 1];
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (kUp == 2) {
        out[2 * i] = a0 * first[i] + a1 * first[i + 1];
        out[2 * i + 1] = b0 * second[i] + b1 * second[i + 1];
      } else {
        const S* __restrict at = first + i * kDown;
        out[i] = a0 * at[0] + a1 * at[1] + (b0 * at[2] + b1 * at[3]);
      }
    }
  }

  template <int kNumber>
  static void sum_pixel(S* __restrict out, const S* __restrict in, const S* weights, int64_t pixel) {
    const int64_t width = kPixel ? kPixel : pixel;
#pragma GCC ivdep
    for (int64_t l = 0; l < width; ++l) {
      const S sum = weights[0] * in[l] + weights[1] * in[l + width];
      out[l] = kNumber > 2 ? sum + (weights[2] * in[l + 2 * width] + weights[3] * in[l + 3 * width]) : sum;
    }
  }

  // The same for any filter and factors, adding to `out`.
  void add_along(S* __restrict out, const S* __restrict row, const S* taps) const {
    const int up = a_.up_x;
    for (int64_t r = 0; r < int64_t(phases_.size()); ++r) {
      const Meeting& m = phases_[r];
      const int64_t count = (a_.out_w - r + up - 1) / up;
      for (int j = 0; j < m.taps; ++j) {
        const S weight = taps[m.first + j * up];
        const S* in = row + (m.sample - first_ + j) * pixel_;
        if (pixel_ == 1) {
          for (int64_t i = 0; i < count; ++i) out[i * up + r] += weight * in[i * a_.down_x];
        } else {
          for (int64_t i = 0; i < count; ++i) {
            for (int64_t l = 0; l < pixel_; ++l) {
              out[(i * up + r) * pixel_ + l] += weight * in[i * a_.down_x * pixel_ + l];
            }
          }
        }
      }
    }
  }

  const Filter a_;
  const int64_t pixel_, planes_;
  const bool large_;  // the input is not in the caches
  const Taps<S> taps_;
  S column_[kUsual ? kUp : 1][kUsual ? kMet : 1], row_[kUsual ? kUp : 1][kUsual ? kMet : 1];  // taps, by phase
  bool whole_ = false;               // filter_whole serves: see there for what it takes
  int64_t shift_[kUsual ? kUp : 1];  // from first_ to the first sample that a phase meets
  std::vector<Meeting> phases_;  // of the first outputs; later ones have the same, `down` samples on, every `up`
  int64_t first_, last_;         // the columns of the input that the filter reads
};

// Run the usual cases with compiled-in numbers, all others without.
template <typename T, int kPixel, int kUp, int kDown>
inline bool run_usual(const Filter& a) {
  if (a.up_x != kUp || a.up_y != kUp || a.down_x != kDown || a.down_y != kDown) return false;
  if (a.filter_w != 4 || a.filter_h != 4) return false;
  const RowFilter<T, kPixel, kUp, kDown> filter(a);
  if (!filter.separable()) return false;
  filter.run();
  return true;
}

template <typename T, int kPixel>
inline bool run_usual(const Filter& a) {
  return run_usual<T, kPixel, 1, 1>(a) || run_usual<T, kPixel, 2, 1>(a) || run_usual<T, kPixel, 1, 2>(a);
}

template <typename T>
inline void run_upfirdn2d_of(const Filter& a) {
  bool done;
  switch (a.channels_last ? a.c : 1) {
    case 1: done = run_usual<T, 1>(a); break;
    case 16: done = run_usual<T, 16>(a); break;
    case 32: done = run_usual<T, 32>(a); break;
    case 64: done = run_usual<T, 64>(a); break;
    default: done = run_usual<T, 0>(a);
  }
  if (!done) RowFilter<T, 0, 0, 0>(a).run();
}

inline void run_upfirdn2d(const Filter& filter) {
  if (filter.n * filter.c * filter.out_h * filter.out_w == 0) return;
  dispatch(filter.dtype, [&](auto zero) { run_upfirdn2d_of<decltype(zero)>(filter); });
}

}  // namespace ops::cpu
