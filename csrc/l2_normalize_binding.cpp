// Registers the C++ and CUDA kernels of simclr_fast::l2_normalize and its backward.
#include <tuple>

#include "binding.h"
#include "l2_normalize_launch.h"

namespace simclr {
namespace {

// Calls f(T{}) with the element type of x.
template <class F>
void with_element_type(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      STD_TORCH_CHECK(false, "l2_normalize: x must be float32 or float64");
  }
}

template <class Launch>
std::tuple<Tensor, Tensor> forward(const Tensor& x_any, double eps, const Launch& launch) {
  const Tensor x = torch::stable::contiguous(x_any);
  const int64_t rows = x.size(0), dim = x.size(1);
  Tensor u = torch::stable::empty_like(x);
  Tensor inv_norm = torch::stable::new_empty(x, {rows});
  if (rows > 0) {
    with_element_type(x, [&](auto zero) {
      using T = decltype(zero);
      launch(L2NormalizeForward<T>{data<T>(x), data<T>(u), data<T>(inv_norm), rows, dim, eps});
    });
  }
  return {u, inv_norm};
}

template <class Launch>
Tensor backward(const Tensor& du_any, const Tensor& u, const Tensor& inv_norm, double eps, const Launch& launch) {
  const Tensor du = torch::stable::contiguous(du_any);
  const int64_t rows = du.size(0), dim = du.size(1);
  Tensor dx = torch::stable::empty_like(du);
  if (rows > 0) {
    with_element_type(du, [&](auto zero) {
      using T = decltype(zero);
      launch(L2NormalizeBackward<T>{data<T>(du), data<T>(u), data<T>(inv_norm), data<T>(dx), rows, dim, eps});
    });
  }
  return dx;
}

std::tuple<Tensor, Tensor> l2_normalize_cpu(const Tensor& x, double eps) {
  return forward(x, eps, [](const auto& args) { cpu::l2_normalize(args, torch_threads()); });
}

Tensor l2_normalize_backward_cpu(const Tensor& du, const Tensor& u, const Tensor& inv_norm, double eps) {
  return backward(du, u, inv_norm, eps, [](const auto& args) { cpu::l2_normalize_backward(args, torch_threads()); });
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CPU, m) {
  m.impl("l2_normalize", TORCH_BOX(&l2_normalize_cpu));
  m.impl("l2_normalize_backward", TORCH_BOX(&l2_normalize_backward_cpu));
}

#ifdef USE_CUDA
std::tuple<Tensor, Tensor> l2_normalize_cuda(const Tensor& x, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  return forward(x, eps, [&](const auto& args) {
    check_launch(cuda::l2_normalize(args, current_stream(x)), "l2_normalize_fwd_kernel");
  });
}

Tensor l2_normalize_backward_cuda(const Tensor& du, const Tensor& u, const Tensor& inv_norm, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(du.get_device_index());
  return backward(du, u, inv_norm, eps, [&](const auto& args) {
    check_launch(cuda::l2_normalize_backward(args, current_stream(du)), "l2_normalize_bwd_kernel");
  });
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CUDA, m) {
  m.impl("l2_normalize", TORCH_BOX(&l2_normalize_cuda));
  m.impl("l2_normalize_backward", TORCH_BOX(&l2_normalize_backward_cuda));
}
#endif

}  // namespace
}  // namespace simclr
