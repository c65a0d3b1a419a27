// The operators on the CPU.
#include <ATen/Dispatch.h>

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
    const at::Tensor total = which == 0 ? at::empty({n, c}, sums.options())
                             : which == 1 ? at::empty({}, sums.options())
                                          : at::empty({c}, sums.options());
    AT_DISPATCH_FLOATING_TYPES(sums.scalar_type(), "add", [&] {
      const auto* from = sums.const_data_ptr<scalar_t>() + which * size;
      auto* to = total.mutable_data_ptr<scalar_t>();
      const int64_t count = total.numel();
      for (int64_t i = 0; i < count; ++i) {
        double sum = 0;
        for (int64_t at = i; at < size; at += count) sum += from[at];
        to[i] = static_cast<scalar_t>(sum);
      }
    });
    return total;
  }
  static void filter(const ops::Filter& filter) { ops::cpu::run_upfirdn2d(filter); }
};

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, CPU, library) { ops::binding::register_operators<Cpu>(library); }
