// The operators on a CUDA device, on the current stream of the tensor's device.
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../binding.h"

namespace {

void check(const char* error) { TORCH_CHECK(error == nullptr, "CUDA: ", error); }

struct Cuda {
  static constexpr bool factorizes = false;
  using Guard = c10::cuda::CUDAGuard;
  static int64_t chunks(const ops::Tail& tail) { return ops::cuda::tail_chunks(tail); }
  static void run(const ops::Tail& tail) { check(ops::cuda::launch_tail(tail, c10::cuda::getCurrentCUDAStream())); }
  static at::Tensor add(const at::Tensor& sums, size_t which) {
    const at::Tensor own = sums.select(0, which);
    return which == 0 ? own.sum(0) : which == 1 ? own.sum() : own.sum(at::IntArrayRef({0, 1}));
  }
  static void filter(const ops::Filter& filter) {
    check(ops::cuda::launch_upfirdn2d(filter, c10::cuda::getCurrentCUDAStream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(stylegan2_mr, CUDA, library) { ops::binding::register_operators<Cuda>(library); }
