// What the CUDA kernels share: element types, access to global memory, launching.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "../operators.h"

extern __shared__ __align__(16) unsigned char shared_memory[];

namespace ops::cuda {

// A block's shared memory.
template <typename T>
__device__ __forceinline__ T* shared() {
  return reinterpret_cast<T*>(shared_memory);
}

template <typename T>
__device__ __forceinline__ T smaller(T a, T b) {
  return a < b ? a : b;
}

// Types of elements. Bits: one in memory. Group: those that a thread takes at once. Vector: sixteen bytes of them.
// Compute: what kernels compute in.
struct Float16 {
  using Bits = unsigned short;
  using Group = ushort4;
  using Vector = uint4;
  using Compute = float;
  static __device__ __forceinline__ float decode(Bits bits) { return __half2float(__ushort_as_half(bits)); }
  static __device__ __forceinline__ Bits encode(float value) { return __half_as_ushort(__float2half_rn(value)); }
};

struct BFloat16 {
  using Bits = unsigned short;
  using Group = ushort4;
  using Vector = uint4;
  using Compute = float;
  static __device__ __forceinline__ float decode(Bits bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
  static __device__ __forceinline__ Bits encode(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
};

struct Float32 {
  using Bits = float;
  using Group = float4;
  using Vector = float4;
  using Compute = float;
  static __device__ __forceinline__ float decode(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits encode(float value) { return value; }
};

struct Float64 {
  using Bits = double;
  using Group = double2;
  using Vector = double2;
  using Compute = double;
  static __device__ __forceinline__ double decode(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits encode(double value) { return value; }
};

template <typename E, typename Four>
__device__ __forceinline__ void unpack(Four group, typename E::Compute (&values)[4]) {
  values[0] = E::decode(group.x), values[1] = E::decode(group.y);
  values[2] = E::decode(group.z), values[3] = E::decode(group.w);
}

template <typename E>
__device__ __forceinline__ void unpack(double2 group, double (&values)[2]) {
  values[0] = group.x, values[1] = group.y;
}

template <typename E>
__device__ __forceinline__ typename E::Group pack(const typename E::Compute (&values)[4]) {
  return {E::encode(values[0]), E::encode(values[1]), E::encode(values[2]), E::encode(values[3])};
}

template <typename E>
__device__ __forceinline__ double2 pack(const double (&values)[2]) {
  return {values[0], values[1]};
}

// Whether such units can be read or written at once.
template <typename Unit>
bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(Unit) == 0;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

template <typename Function>
const char* with_element(DType dtype, Function function) {
  switch (dtype) {
    case DType::float16:
      return function(Float16{});
    case DType::bfloat16:
      return function(BFloat16{});
    case DType::float32:
      return function(Float32{});
    case DType::float64:
      return function(Float64{});
  }
  return "unknown dtype; expected float16, bfloat16, float32 or float64";
}

template <typename Arguments>
const char* launch(void (*kernel)(Arguments), const Arguments& arguments, int64_t blocks, int threads, size_t shared,
                   void* stream) {
  if (blocks >= int64_t(1) << 31) return "the tensor needs 2^31 thread blocks or more; split it along the batch";
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ops::cuda
