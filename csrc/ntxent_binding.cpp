// Registers the C++ kernels of simclr_fast::ntxent_{normalize,fwd,bwd} for the CPU.
#include "ntxent_binding.h"

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "cpu/ntxent.h"
#include "half.h"

namespace simclr {
namespace {

// Calls f(Z{}, T{}): Z the embeddings' element type, T that of rows and statistics.
template <class F>
void with_element_types(const Tensor& z, const F& f) {
  switch (z.scalar_type()) {
    case ScalarType::Float:
      return f(float{}, float{});
    case ScalarType::Double:
      return f(double{}, double{});
    case ScalarType::Half:
      return f(Half{}, float{});
    case ScalarType::BFloat16:
      return f(BFloat16{}, float{});
    default:
      STD_TORCH_CHECK(false, "ntxent: z0 and z1 must be float16, bfloat16, float32 or float64");
  }
}

double temperature_value(double temperature, const std::optional<Tensor>& tensor) {
  if (!tensor) return temperature;
  return tensor->scalar_type() == ScalarType::Double ? *data<double>(*tensor) : *data<float>(*tensor);
}

std::tuple<Tensor, Tensor> ntxent_normalize_cpu(const Tensor& z0_any, const Tensor& z1_any, double eps) {
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  const int64_t n = z0.size(0), dim = z0.size(1);
  const ScalarType type = z0.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor u = torch::stable::new_empty(z0, {2 * n, dim}, type);
  Tensor inv_norm = torch::stable::new_empty(z0, {2 * n}, type);
  with_element_types(z0, [&](auto z, auto t) {
    using Z = decltype(z);
    using T = decltype(t);
    cpu::ntxent_normalize(
        cpu::NtxentNormalize<Z, T>{
            {data<Z>(z0), data<Z>(z1)}, {z0.stride(0), z1.stride(0)}, data<T>(u), data<T>(inv_norm), n, dim, eps},
        torch_threads());
  });
  return {u, inv_norm};
}

// `precision` is for tensor cores: the CPU multiplies float32 as float32.
std::tuple<Tensor, Tensor, Tensor> ntxent_fwd_cpu(const Tensor& u_any, int64_t n, int64_t row_offset,
                                                  double temperature, std::optional<Tensor> temperature_tensor,
                                                  std::string reduction_name, std::string /*precision*/) {
  const Tensor u = torch::stable::contiguous(u_any);
  const Reduction reduction = reduction_of(reduction_name, n, u.size(0));
  Tensor loss = reduction.reduce ? torch::stable::new_empty(u, {}) : torch::stable::new_empty(u, {2 * n});
  Tensor lse_neg = torch::stable::new_empty(u, {2 * n});
  Tensor s_pos = torch::stable::new_empty(u, {2 * n});
  with_element_types(u, [&](auto, auto t) {
    using T = decltype(t);
    cpu::ntxent_forward(cpu::NtxentForward<T>{data<T>(u), data<T>(loss), data<T>(lse_neg), data<T>(s_pos), n, u.size(0),
                                              row_offset, u.size(1), temperature_value(temperature, temperature_tensor),
                                              reduction.scale, reduction.reduce},
                        torch_threads());
  });
  return {loss, lse_neg, s_pos};
}

std::tuple<Tensor, Tensor, Tensor> ntxent_bwd_cpu(const Tensor& dloss_any, const Tensor& z0, const Tensor& z1,
                                                  const Tensor& u_any, const Tensor& inv_norm, const Tensor& lse_neg,
                                                  const Tensor& s_pos, int64_t row_offset, std::string reduction_name,
                                                  double eps, double temperature,
                                                  std::optional<Tensor> temperature_tensor, std::string /*precision*/,
                                                  bool /*need_dt*/) {
  const Tensor dloss = torch::stable::contiguous(dloss_any), u = torch::stable::contiguous(u_any);
  const int64_t n = z0.size(0), dim = z0.size(1);
  const Reduction reduction = reduction_of(reduction_name, n, u.size(0));
  check_gradient(dloss, reduction, u.size(0));
  Tensor dz0 = torch::stable::new_empty(z0, {n, dim});
  Tensor dz1 = torch::stable::new_empty(z1, {n, dim});
  Tensor dt = torch::stable::new_empty(u, {});
  with_element_types(z0, [&](auto z, auto t) {
    using Z = decltype(z);
    using T = decltype(t);
    cpu::ntxent_backward(cpu::NtxentBackward<Z, T>{data<T>(dloss),
                                                   data<T>(u),
                                                   data<T>(inv_norm),
                                                   data<T>(lse_neg),
                                                   data<T>(s_pos),
                                                   {data<Z>(dz0), data<Z>(dz1)},
                                                   data<T>(dt),
                                                   n,
                                                   u.size(0),
                                                   row_offset,
                                                   dim,
                                                   temperature_value(temperature, temperature_tensor),
                                                   reduction.scale,
                                                   eps,
                                                   reduction.reduce},
                         torch_threads());
  });
  return {dz0, dz1, dt};
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CPU, m) {
  m.impl("ntxent_normalize", TORCH_BOX(&ntxent_normalize_cpu));
  m.impl("ntxent_fwd", TORCH_BOX(&ntxent_fwd_cpu));
  m.impl("ntxent_bwd", TORCH_BOX(&ntxent_bwd_cpu));
}

}  // namespace
}  // namespace simclr
