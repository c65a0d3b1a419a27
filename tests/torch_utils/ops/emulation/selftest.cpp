// Toy kernels that show what the emulator catches and counts: ./selftest NAME, results on stdout.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

using emulator::machine;

extern __shared__ __align__(16) unsigned char shared_memory[];

namespace {

constexpr unsigned all = 0xFFFFFFFFu;

__global__ void copy(const float* x, float* y, int stride, int shift) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  __stwb(y + i, __ldg(x + i * stride + shift));
}

__global__ void copy_four(const float* x, float* y) {
  const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  __stwb(reinterpret_cast<float4*>(y + i), __ldg(reinterpret_cast<const float4*>(x + i)));
}

__global__ void add_bias(const float* x, const float* b, float* y) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  __stwb(y + i, __ldg(x + i) + __ldg(b + threadIdx.x % 2) + __ldg(b + 8));
}

__global__ void loop(const float* x, float* y) {  // lanes leave the loop at different times
  for (unsigned i = threadIdx.x; i < 40; i += blockDim.x) __stwb(y + i, __ldg(x + i));
}

__global__ void direct(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

__global__ void poison(float* y) {
  const float* shared = reinterpret_cast<float*>(shared_memory);
  __stwb(y + threadIdx.x, shared[threadIdx.x]);
}

__global__ void overrun(float* y) {
  __stwb(y + threadIdx.x, reinterpret_cast<float*>(shared_memory)[threadIdx.x + 1]);
}

__global__ void turn(const float* x, float* y, bool barrier) {  // through shared memory
  float* shared = reinterpret_cast<float*>(shared_memory);
  shared[threadIdx.x] = __ldg(x + threadIdx.x);
  if (barrier) __syncthreads();
  __stwb(y + threadIdx.x, shared[blockDim.x - 1 - threadIdx.x]);
}

__global__ void divergent_barrier(float* y) {
  if (threadIdx.x < 40) __syncthreads();
  __stwb(y + threadIdx.x, 1.0f);
}

__global__ void divergent_barriers(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  __stwb(y + threadIdx.x, 1.0f);
}

__global__ void divergent_shuffle(float* y) {
  float value = 1;
  if (threadIdx.x != 5) value = __shfl_down_sync(all, value, 1);
  __stwb(y + threadIdx.x, value);
}

__global__ void shuffles(float* y) {
  const float value = float(threadIdx.x);
  float sum = value;
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(all, sum, step);
  const unsigned half = threadIdx.x % 32 < 16 ? 0xFFFFu : 0xFFFF0000u;  // the halves of a warp, each by itself
  const float own = threadIdx.x % 32 < 16 ? __shfl_xor_sync(half, value, 1) : __shfl_xor_sync(half, value, 2);
  float* row = y + threadIdx.x * 5;
  __stwb(row, __shfl_down_sync(all, value, 3));
  __stwb(row + 1, __shfl_down_sync(all, value, 3, 8));
  __stwb(row + 2, __shfl_xor_sync(all, value, 9, 8));
  __stwb(row + 3, sum);
  __stwb(row + 4, own);
}

constexpr unsigned count = 64;
float* x = static_cast<float*>(std::malloc(1024 * sizeof(float)));
float* y = static_cast<float*>(std::malloc(count * 5 * sizeof(float)));

template <typename... Parameters, typename... Arguments>
void launch(unsigned threads, size_t shared, void (*kernel)(Parameters...), Arguments... arguments) {
  const cudaLaunchConfig_t config{dim3(count / threads), dim3(threads), shared, nullptr, nullptr, 0};
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) std::printf("%s", cudaGetErrorString(error));
}

void traffic() {
  for (const auto& r : machine.regions) {
    std::printf("%s sectors %lu requests %lu bytes %lu\n", r.name.c_str(), r.sectors, r.requests, r.bytes);
  }
}

void values(size_t count) { std::fwrite(y, sizeof(float), count, stdout); }

// Every bit pattern as a float; then, for the float of every 16 leading bits with three endings, its bits.
template <typename ToFloat, typename FromFloat>
void conversions(ToFloat to_float, FromFloat from_float) {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    const float value = to_float(bits);
    std::fwrite(&value, sizeof(value), 1, stdout);
  }
  for (unsigned ending : {0x0000u, 0x1000u, 0x7FFFu, 0x8000u, 0x8001u, 0xF000u}) {
    for (unsigned leading = 0; leading < 0x10000; ++leading) {
      const unsigned bits = leading << 16 | ending;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      const unsigned short found = from_float(value);
      std::fwrite(&found, sizeof(found), 1, stdout);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  machine.order = name == "turn_reversed" ? emulator::Order::reversed : emulator::Order::forward;
  for (int i = 0; i < 1024; ++i) x[i] = float(i);
  emulator::add_array("x", x, 1024 * sizeof(float), false, false);
  emulator::add_array("y", y, count * 5 * sizeof(float), true, false);
  if (name == "coalesced") launch(32, 0, copy, x, y, 1, 0), traffic();
  if (name == "strided") launch(32, 0, copy, x, y, 8, 0), traffic();
  if (name == "shifted") launch(32, 0, copy, x, y, 1, 1), traffic();
  if (name == "vector") launch(16, 0, copy_four, x, y), traffic();
  if (name == "loop") launch(64, 0, loop, x, y), launch(32, 0, loop, x, y), traffic();
  if (name == "misaligned") launch(8, 0, copy_four, x + 1, y);
  if (name == "out of bounds") launch(64, 0, copy, x, y, 17, 1);
  if (name == "write to input") launch(64, 0, copy, y, x, 1, 0);
  if (name == "direct") launch(64, 0, direct, x, y);
  if (name == "poison") launch(64, 256, poison, y), values(64);
  if (name == "overrun") launch(64, 256, overrun, y);
  if (name == "too much shared") launch(64, emulator::shared_bytes + 1, poison, y);
  if (name == "turn" || name == "turn_reversed") launch(64, 256, turn, x, y, true), values(64);
  if (name == "race") launch(64, 256, turn, x, y, false), values(64);
  if (name == "divergent_barrier") launch(64, 0, divergent_barrier, y);
  if (name == "divergent_barriers") launch(64, 0, divergent_barriers, y);
  if (name == "divergent_shuffle") launch(64, 0, divergent_shuffle, y);
  if (name == "shuffles") launch(64, 0, shuffles, y), values(64 * 5);
  if (name == "half") {
    conversions([](unsigned bits) { return __half2float(__ushort_as_half(bits)); },
                [](float value) { return __half_as_ushort(__float2half_rn(value)); });
  }
  if (name == "bfloat16") {
    conversions([](unsigned bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); },
                [](float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); });
  }
  if (name == "broadcast") {
    float* b = static_cast<float*>(std::malloc(9 * sizeof(float)));
    for (int i = 0; i < 9; ++i) b[i] = 1;
    emulator::add_array("b", b, 9 * sizeof(float), false, true);
    launch(32, 0, add_bias, x, b, y), traffic();
    std::free(b);
  }
  std::free(x);
  std::free(y);
}
