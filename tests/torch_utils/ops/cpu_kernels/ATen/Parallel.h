// Stands in for PyTorch's header of this name: work is parted as among several threads, and done by one.
#pragma once

#include <algorithm>
#include <cstdint>

namespace at {

inline int64_t simulated_threads = 1;

inline int64_t get_num_threads() { return simulated_threads; }

template <typename F>
inline void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& function) {
  if (begin >= end) return;
  const int64_t parts = std::min(simulated_threads, (end - begin + grain - 1) / grain);
  const int64_t size = (end - begin + parts - 1) / parts;
  for (; begin < end; begin += size) function(begin, std::min(end, begin + size));
}

}  // namespace at
