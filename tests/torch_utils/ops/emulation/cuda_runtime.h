// The part of CUDA that the kernels use, for g++, on the emulated device.
#pragma once

#include <cmath>
#include <type_traits>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
// Truly inline: else one place in a wrapper would stand for all its callers.
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__

using uint3 = emulator::Index;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct __align__(4) ushort2 { unsigned short x, y; };
struct __align__(8) ushort4 { unsigned short x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(16) double2 { double x, y; };

inline const uint3& threadIdx = emulator::machine.thread_index;
inline const uint3& blockIdx = emulator::machine.block_index;
inline const uint3& blockDim = emulator::machine.launch.block;
inline const uint3& gridDim = emulator::machine.launch.grid;

template <typename T>
constexpr bool emulated_access = (std::is_same_v<T, float> || std::is_same_v<T, double> ||
                                  std::is_same_v<T, unsigned short> || std::is_same_v<T, unsigned> ||
                                  std::is_same_v<T, ushort2> || std::is_same_v<T, ushort4> ||
                                  std::is_same_v<T, uint2> || std::is_same_v<T, uint4> || std::is_same_v<T, float2> ||
                                  std::is_same_v<T, float4> || std::is_same_v<T, double2>);

template <typename T>
__forceinline__ T __ldg(const T* address) {
  static_assert(emulated_access<T>);
  return emulator::load(address);
}

template <typename T>
__forceinline__ void __stwb(T* address, T value) {
  static_assert(emulated_access<T>);
  emulator::store(address, value);
}

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::barrier(file, line);
}

// A lane beyond the last of its `width` neighbors gives the caller its own value back.
template <typename T>
T emulated_shuffle(unsigned mask, T value, unsigned source, unsigned width, const char* file, int line) {
  const unsigned lane = emulator::lane(), last = lane | (width - 1);
  uint64_t bits = 0;
  static_assert(sizeof(T) <= sizeof(bits));
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulator::shuffle(mask, bits, source > last ? lane : source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emulator::warp_size,
                   const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emulated_shuffle(mask, value, emulator::lane() + delta, width, file, line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = emulator::warp_size,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emulated_shuffle(mask, value, emulator::lane() ^ lanes, width, file, line);
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                  ? "no error"
         : error == cudaErrorInvalidValue      ? "invalid argument"
                                               : "invalid configuration argument";
}

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// What `extern __shared__ unsigned char shared_memory[]` declares.
inline __align__(16) unsigned char shared_memory[emulator::shared_bytes];

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 0xFFFF || grid.z > 0xFFFF || !block.x ||
      !block.y || !block.z || block.z > 64 || uint64_t(block.x) * block.y * block.z > 1024) {
    return cudaErrorInvalidConfiguration;
  }
  if (config->dynamicSmemBytes > emulator::shared_bytes) return cudaErrorInvalidValue;
  emulator::run({{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config->dynamicSmemBytes,
                         shared_memory, [&] { kernel(static_cast<Parameters>(arguments)...); }});
  return cudaSuccess;
}
