// Upsampling, filtering and downsampling on CUDA: see Filter in operators.h.
//
// A block of threads makes a tile of outputs from a tile of samples, which it first brings to shared memory along with
// the filter. A tile has rows and columns of pixels with one channel, or with channels last those in 32 bytes, which is
// the least that memory moves. A thread keeps to a column and a channel, or a pair of channels, and makes strips of
// outputs that lie `up` rows apart: these meet the same taps, on samples that lie `down` rows apart, and so share what
// is read.

#include "common.h"

namespace ops::cuda {
namespace {

constexpr int most_threads = 256, strip = 8;
constexpr int most_strips = 8;  // of a thread, if enough blocks are left
constexpr int64_t enough_blocks = 1024, enough_shared = 32 << 10, most_shared = 48 << 10;

// On one multiprocessor: some fetch while others compute.
template <typename E>
constexpr int blocks_at_once = sizeof(typename E::Compute) == 8 ? 2 : 4;

// Elements of 16 bits are read and written in pairs of channels, where there are some.
template <typename E>
constexpr bool has_pairs = sizeof(typename E::Bits) == 2;

// Divides numbers from 0 to 2^31 − 1 by multiplying, which is several times as fast.
struct Divider {
  unsigned divisor, multiplier;
  int shift = 31;

  explicit Divider(int64_t by) : divisor(static_cast<unsigned>(by)) {
    while (int64_t(1) << (shift - 31) < by) ++shift;
    multiplier = static_cast<unsigned>(((uint64_t(1) << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int quotient(int number) const {
    return static_cast<int>((static_cast<uint64_t>(static_cast<unsigned>(number)) * multiplier) >> shift);
  }
  // Returns the remainder, and leaves the quotient.
  __device__ __forceinline__ int split(int& number) const {
    const int whole = quotient(number), rest = number - whole * static_cast<int>(divisor);
    number = whole;
    return rest;
  }
};

// Rows or columns.
struct Axis {
  int in, out, up, down, taps, pad;
  int lead;     // samples before the picture, enough to count positions from zero
  int align;    // a power of two: the samples of tiles start at multiples of it
  int outputs;  // of a tile
  int samples;  // of a tile
  Divider tiles, by_up;
};

template <typename E>
struct Arguments {
  const typename E::Bits* x;
  typename E::Bits* y;
  const typename E::Compute* f;
  Axis rows, columns;
  int64_t depth;   // channels from one pixel to the next
  int channels;    // of a tile
  Divider groups;  // such channels, in all
  bool vectors;    // a unit of sixteen bytes is fetched at once, else one element
  int unit_columns, unit_channels;  // of a unit
  Divider units, row_units;         // of a pixel, and of a row of a tile
  int fetch_lines;                  // rows that are fetched at the same time
  Divider lanes, lane_channels;     // threads along a row of a tile, and along its pixel
  Divider phases;                   // of strips: how their rows differ, modulo `up`
  int lines, strips;                // at work at the same time, and in a tile
  bool flip;
  typename E::Compute gain;
};

// Where a tile lies along an axis.
struct Place {
  int output, outputs;
  int start, end;  // the samples to fetch
  int skip;        // from there to the first that counts
  int offset;      // from the first output's first tap to the tap on that sample
};

__device__ __forceinline__ Place place(const Axis& axis, int tile) {
  const int output = tile * axis.outputs, outputs = smaller(axis.outputs, axis.out - output);
  const int position = output * axis.down - axis.pad + axis.lead * axis.up;
  const int first = axis.by_up.quotient(position + axis.up - 1);
  const int last = axis.by_up.quotient(position + (outputs - 1) * axis.down + axis.taps - 1);
  const int start = (first - axis.lead) & -axis.align;
  return {output, outputs, start, smaller(last + 1 - axis.lead, axis.in), first - axis.lead - start,
          first * axis.up - position};
}

// The first sample of a tile that an output meets, and with which tap.
struct Meeting {
  int sample, tap;
};

__device__ __forceinline__ Meeting meet(const Axis& axis, const Place& place, int output) {
  const int sample = axis.by_up.quotient(output * axis.down - place.offset + axis.up - 1);
  return {place.skip + sample, place.offset + sample * axis.up - output * axis.down};
}

// A thread keeps to its place in a row, unless a row has more units than the block has threads.
template <typename Unit, typename E>
__device__ __forceinline__ void fetch(const Arguments<E>& a, const Place& rows, const Place& columns, int channels,
                                      const typename E::Bits* picture, typename E::Bits* tile) {
  const int units = static_cast<int>(a.row_units.divisor);
  int line = threadIdx.x, unit = a.row_units.split(line);
  if (line >= a.fetch_lines) return;
  for (; unit < units; unit += blockDim.x) {
    int column = unit;
    const int channel = a.units.split(column) * a.unit_channels;
    column = columns.start + column * a.unit_columns;
    const bool inside = column >= 0 && column < columns.end && channel < channels;
    const int64_t pitch = a.columns.in * a.depth;
    const auto* const from = picture + rows.start * pitch + column * a.depth + channel;
    auto* const to = reinterpret_cast<Unit*>(tile) + unit;
#pragma unroll 4
    for (int i = line; i < a.rows.samples; i += a.fetch_lines) {
      const int row = rows.start + i;
      to[i * units] =
          inside && row >= 0 && row < rows.end ? __ldg(reinterpret_cast<const Unit*>(from + i * pitch)) : Unit{};
    }
  }
}

template <typename E, int pair>
__device__ __forceinline__ void read(const typename E::Bits* from, typename E::Compute (&values)[pair]) {
  if constexpr (pair == 1) {
    values[0] = E::decode(*from);
  } else {
    const auto both = *reinterpret_cast<const ushort2*>(from);
    values[0] = E::decode(both.x), values[1] = E::decode(both.y);
  }
}

template <typename E, int pair>
__device__ __forceinline__ void write(typename E::Bits* to, const typename E::Compute (&values)[pair]) {
  if constexpr (pair == 1) {
    __stwb(to, E::encode(values[0]));
  } else {
    __stwb(reinterpret_cast<ushort2*>(to), ushort2{E::encode(values[0]), E::encode(values[1])});
  }
}

// taps: how many meet a sample, along each axis. taps and down are 0 where known at run time only. pair: channels of a
// thread.
template <typename E, int taps, int down, int pair>
__global__ void __launch_bounds__(most_threads, blocks_at_once<E>) upfirdn2d(const Arguments<E> a) {
  using Bits = typename E::Bits;
  using S = typename E::Compute;
  const int filter_size = a.rows.taps * a.columns.taps;
  S* const filter = shared<S>();
  Bits* const tile = shared<Bits>() + (filter_size * sizeof(S) + 15) / 16 * (16 / sizeof(Bits));

  int picture = blockIdx.x;  // groups of channels come first: they share lines of memory
  const int first_channel = a.groups.split(picture) * a.channels;
  const Place columns = place(a.columns, a.columns.tiles.split(picture));
  const Place rows = place(a.rows, a.rows.tiles.split(picture));
  const int channels = static_cast<int>(smaller(static_cast<int64_t>(a.channels), a.depth - first_channel));

  for (int i = threadIdx.x; i < filter_size; i += blockDim.x)
    filter[i] = a.gain * __ldg(a.f + (a.flip ? i : filter_size - 1 - i));
  const Bits* const x = a.x + static_cast<int64_t>(picture) * a.rows.in * a.columns.in * a.depth + first_channel;
  if (a.vectors) {
    fetch<typename E::Vector>(a, rows, columns, channels, x, tile);
  } else {
    fetch<Bits>(a, rows, columns, channels, x, tile);
  }
  __syncthreads();

  int line = threadIdx.x, column = a.lanes.split(line);
  const int channel = a.lane_channels.split(column) * pair;
  if (line >= a.lines || column >= columns.outputs || channel >= channels) return;
  const Meeting across = meet(a.columns, columns, column);
  const int pitch = a.columns.samples * a.channels;
  const int64_t first_row = static_cast<int64_t>(picture) * a.rows.out + rows.output;
  Bits* const y = a.y + (first_row * a.columns.out + columns.output + column) * a.depth + first_channel + channel;
  const int64_t out_pitch = a.columns.out * a.depth;

  for (; line < a.strips; line += a.lines) {
    int output = line;
    const int phase = a.phases.split(output);
    output = output * strip * a.rows.up + phase;
    if (output >= rows.outputs) continue;
    const Meeting along = meet(a.rows, rows, output);
    const S* const tap = filter + along.tap * a.columns.taps + across.tap;
    const Bits* sample = tile + along.sample * pitch + across.sample * a.channels + channel;
    S sums[strip][pair] = {};
    if constexpr (taps > 0) {
      S weights[taps][taps];
#pragma unroll
      for (int k = 0; k < taps; ++k) {
#pragma unroll
        for (int l = 0; l < taps; ++l) weights[k][l] = tap[k * a.rows.up * a.columns.taps + l * a.columns.up];
      }
#pragma unroll
      for (int row = 0; row < (strip - 1) * down + taps; ++row, sample += pitch) {
        S values[taps][pair];
#pragma unroll
        for (int l = 0; l < taps; ++l) read<E>(sample + l * a.channels, values[l]);
#pragma unroll
        for (int j = 0; j < strip; ++j) {
          const int k = row - j * down;
          if (k < 0 || k >= taps) continue;
#pragma unroll
          for (int l = 0; l < taps; ++l) {
#pragma unroll
            for (int i = 0; i < pair; ++i) sums[j][i] += weights[k][l] * values[l][i];
          }
        }
      }
    } else {
      const int last = a.rows.by_up.quotient(rows.outputs - 1 - output);
      int offsets[strip];
#pragma unroll
      for (int j = 0; j < strip; ++j) offsets[j] = smaller(j, last) * a.rows.down * pitch;
      for (int k = along.tap; k < a.rows.taps; k += a.rows.up, sample += pitch) {
        const S* weight = filter + k * a.columns.taps + across.tap;
        const Bits* value = sample;
        for (int l = across.tap; l < a.columns.taps; l += a.columns.up) {
#pragma unroll
          for (int j = 0; j < strip; ++j) sums[j][0] += *weight * E::decode(value[offsets[j]]);
          weight += a.columns.up;
          value += a.channels;
        }
      }
    }
    Bits* to = y + output * out_pitch;
#pragma unroll
    for (int j = 0; j < strip; ++j, to += a.rows.up * out_pitch) {
      if (output + j * a.rows.up < rows.outputs) write<E>(to, sums[j]);
    }
  }
}

// How many samples meet a number of outputs, wherever these begin.
int64_t count_samples(int64_t outputs, int up, int down, int taps, int align) {
  const int64_t samples = ((outputs - 1) * down + taps - 1) / up + 1;
  return round_up(samples + align - 1, align);
}

template <typename E>
const char* launch_tiles(const Filter& filter, void* stream) {
  using Bits = typename E::Bits;
  using S = typename E::Compute;
  constexpr int V = sizeof(typename E::Vector) / sizeof(Bits), sector = 2 * V;
  const bool channels_last = filter.channels_last && filter.c > 1;
  const int64_t pictures = channels_last ? filter.n : filter.n * filter.c, depth = channels_last ? filter.c : 1;
  const int channels = static_cast<int>(std::min<int64_t>(depth, sector));
  const int align = sector % channels ? 1 : sector / channels;
  const int up_x = filter.up_x, up_y = filter.up_y, down_x = filter.down_x, down_y = filter.down_y;
  const int taps_x = filter.filter_w, taps_y = filter.filter_h;

  const auto reach = [](int64_t in, int64_t out, int64_t up, int64_t down, int64_t taps, int64_t pad) {
    return std::max(in, out * down + std::abs(pad) + taps + 2 * strip * up);
  };
  if (std::max(reach(filter.in_w, filter.out_w, up_x, down_x, taps_x, filter.pad_x),
               reach(filter.in_h, filter.out_h, up_y, down_y, taps_y, filter.pad_y)) >= int64_t(1) << 31)
    return "upfirdn2d: a picture has more than 2^31 rows or columns, zeros between samples and padding included";

  const auto suits = [&](int taps, int down) {
    return taps_x == taps * up_x && taps_y == taps * up_y && down_x == down && down_y == down;
  };
  const bool known = suits(2, 1) || suits(4, 1) || suits(4, 2);
  const bool paired = has_pairs<E> && known && depth % 2 == 0 && aligned<ushort2>(filter.y);
  const int pair = paired ? 2 : 1;

  // A tile begins as wide as its threads, with some strips for each of them, and shrinks until it fits in.
  const int64_t most = std::max(16, 128 / channels), tiles = divide_up(filter.out_w, most);
  int64_t wide = std::min(filter.out_w, round_up(divide_up(filter.out_w, tiles), align));
  const int64_t full = int64_t(strip) * up_y, lines = std::max<int64_t>(1, most_threads / (wide * channels / pair));
  int64_t high = round_up(std::min(filter.out_h, lines * strip * most_strips), full);
  const int64_t filter_bytes = round_up(int64_t(taps_x) * taps_y * sizeof(S), 16), groups = divide_up(depth, channels);
  int64_t samples_x, samples_y, bytes, blocks;
  for (;;) {
    samples_x = count_samples(wide, up_x, down_x, taps_x, align);
    samples_y = count_samples(high, up_y, down_y, taps_y, 1);
    bytes = filter_bytes + samples_x * samples_y * channels * int64_t(sizeof(Bits));
    blocks = pictures * divide_up(filter.out_h, high) * divide_up(filter.out_w, wide) * groups;
    const bool enough = bytes <= enough_shared && blocks >= enough_blocks;
    if (enough || (bytes <= most_shared && high <= std::max(full, lines * strip))) break;
    if (wide == 1 && high == (known ? full : 1))
      return "upfirdn2d: the filter is too large; give one of at most 32×32 taps";
    if (high > full) {
      high = round_up(high / 2, full);
    } else if (wide > 1) {
      wide = (wide + 1) / 2;
    } else {
      high /= 2;
    }
  }

  const bool vectors = (channels_last ? filter.c : filter.in_w) % V == 0 && aligned<typename E::Vector>(filter.x);
  const int unit_columns = vectors && channels == 1 ? V : 1, unit_channels = vectors && channels > 1 ? V : 1;
  const int64_t lanes = wide * channels / pair, phases = std::min<int64_t>(up_y, high);
  const int64_t strips = phases * divide_up(high, full);
  const int64_t row_units = samples_x / unit_columns * (channels / unit_channels);
  const int64_t threads = round_up(std::min<int64_t>(most_threads, lanes * strips), 32);
  const auto axis = [](int64_t in, int64_t out, int up, int down, int taps, int64_t pad, int align, int64_t outputs,
                       int64_t samples) {
    const int lead = static_cast<int>(divide_up(std::max<int64_t>(pad, 0), up));
    return Axis{int(in), int(out), up, down, taps, int(pad), lead, align, int(outputs), int(samples),
                Divider(divide_up(out, outputs)), Divider(up)};
  };
  const Arguments<E> arguments = {
      static_cast<const Bits*>(filter.x),
      static_cast<Bits*>(filter.y),
      static_cast<const S*>(filter.f),
      axis(filter.in_h, filter.out_h, up_y, down_y, taps_y, filter.pad_y, 1, high, samples_y),
      axis(filter.in_w, filter.out_w, up_x, down_x, taps_x, filter.pad_x, align, wide, samples_x),
      depth,
      channels,
      Divider(groups),
      vectors,
      unit_columns,
      unit_channels,
      Divider(channels / unit_channels),
      Divider(row_units),
      int(std::max<int64_t>(threads / row_units, 1)),
      Divider(lanes),
      Divider(channels / pair),
      Divider(phases),
      int(threads / lanes),
      int(strips),
      filter.flip,
      S(filter.gain),
  };

  constexpr int most_pair = has_pairs<E> ? 2 : 1;
  void (*const kernels[2][3])(Arguments<E>) = {
      {upfirdn2d<E, 2, 1, 1>, upfirdn2d<E, 4, 1, 1>, upfirdn2d<E, 4, 2, 1>},
      {upfirdn2d<E, 2, 1, most_pair>, upfirdn2d<E, 4, 1, most_pair>, upfirdn2d<E, 4, 2, most_pair>}};
  auto* const kernel = known ? kernels[pair - 1][suits(2, 1) ? 0 : suits(4, 1) ? 1 : 2] : upfirdn2d<E, 0, 0, 1>;
  return launch(kernel, arguments, blocks, int(threads), bytes, stream);
}

}  // namespace

const char* launch_upfirdn2d(const Filter& filter, void* stream) {
  if (filter.n == 0 || filter.c == 0 || filter.out_h == 0 || filter.out_w == 0) return nullptr;
  return with_element(filter.dtype, [&](auto element) { return launch_tiles<decltype(element)>(filter, stream); });
}

}  // namespace ops::cuda
