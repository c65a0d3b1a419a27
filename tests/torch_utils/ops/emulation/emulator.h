// A CUDA device on the CPU: the threads of a block are fibers, every access to an array is checked and counted.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace emulator {

constexpr int warp_size = 32;
constexpr size_t shared_bytes = 48 << 10;

struct Index {
  unsigned x, y, z;
};

// An array in global memory, with the traffic that it caused.
struct Region {
  std::string name;
  uintptr_t begin, end;
  bool writable;
  bool broadcast;  // a small operand, which stays in the cache: its sectors count once per block
  uint64_t sectors, requests, bytes;
};

struct Launch {
  Index grid, block;
  size_t shared;
  unsigned char* memory;  // the kernel's shared memory, of shared_bytes
  std::function<void()> kernel;
};

enum class Order { forward, reversed, shuffled };

// What kernels and those who launch them see of the device.
struct Machine {
  Order order = Order::forward;  // of threads, whenever several can run, and of blocks
  std::mt19937_64 random;
  int64_t first_block = 0, last_block = -1, block_stride = 1;  // which blocks run; negative ones count from the end
  std::vector<Region> regions;
  Launch launch;
  Index thread_index, block_index;
};

inline Machine machine;

// Kernels must not reach an array but through load and store: to others it is poisoned while they run.
void add_array(const std::string& name, const void* data, size_t bytes, bool writable, bool broadcast);

void run(const Launch& launch);
unsigned lane();
void barrier(const char* file, int line);
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source_lane, const char* file, int line);

// Checks and counts an access. place: the address in the kernel that it comes from.
void note(const void* address, size_t bytes, bool write, const void* place);

// noinline, so that the return address tells the place in the kernel.
template <typename T>
__attribute__((noinline, no_sanitize("address"))) T load(const T* address) {
  note(address, sizeof(T), false, __builtin_return_address(0));
  return *address;
}

template <typename T>
__attribute__((noinline, no_sanitize("address"))) void store(T* address, T value) {
  note(address, sizeof(T), true, __builtin_return_address(0));
  *address = value;
}

}  // namespace emulator
