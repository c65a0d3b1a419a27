// The operators on the CPU.
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
  static void filter(const ops::Filter& filter) { ops::cpu::run_upfirdn2d(filter); }
};

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, CPU, library) { ops::binding::register_operators<Cpu>(library); }
