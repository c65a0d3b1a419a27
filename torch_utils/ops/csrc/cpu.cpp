// The operators on the CPU.
#include <ATen/Dispatch.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "binding.h"
#include "tail_cpu.h"
#include "upfirdn2d_cpu.h"

namespace {

struct Cpu {
  static constexpr bool factorises = true;
  struct Guard {
    explicit Guard(c10::Device) {}
  };
  static int64_t chunks(const ops::Tail& tail) { return ops::cpu::tail_chunks(tail); }
  static void run(const ops::Tail& tail) { ops::cpu::run_tail(tail); }
  static at::Tensor add(const at::Tensor& sums, size_t which) {  // by hand, as an operator's call takes longer
    const int64_t n = sums.size(2), c = sums.size(3), size = sums.size(1) * n * c;
    const at::Tensor gradient = which == 0 ? at::empty({n, c}, sums.options())
                                : which == 1 ? at::empty({}, sums.options())
                                             : at::empty({c}, sums.options());
    AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "add", [&] {
      const auto* from = sums.const_data_ptr<scalar_t>() + which * size;
      auto* to = gradient.mutable_data_ptr<scalar_t>();
      const int64_t count = gradient.numel();
      constexpr int64_t kAtOnce = 8;  // as adding to what was added to just before waits for it
      std::vector<double> totals(count == 1 ? kAtOnce : count);
      const int64_t width = totals.size();
      for (int64_t at = 0; at < size; at += width) {
        for (int64_t i = 0; i < std::min(width, size - at); ++i) totals[i] += from[at + i];
      }
      if (count == 1) totals[0] = std::accumulate(totals.begin(), totals.end(), 0.0);
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<scalar_t>(totals[i]);
    });
    return gradient;
  }
  static void filter(const ops::Filter& filter) { ops::cpu::run_upfirdn2d(filter); }
};

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, CPU, library) { ops::binding::register_operators<Cpu>(library); }
