// Registers the CUDA C++ kernels of simclr_fast::ntxent_{normalize,fwd,bwd}.
#ifdef USE_CUDA
#include <optional>
#include <string>
#include <tuple>

#include "ntxent_binding.h"
#include "ntxent_launch.h"

namespace simclr {
namespace {

using torch::stable::accelerator::DeviceGuard;

int dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Half:
      return SIMCLR_HALF;
    case ScalarType::BFloat16:
      return SIMCLR_BFLOAT16;
    case ScalarType::Float:
      return SIMCLR_FLOAT;
    case ScalarType::Double:
      return SIMCLR_DOUBLE;
    default:
      STD_TORCH_CHECK(false, "ntxent: z0 and z1 must be float16, bfloat16, float32 or float64");
  }
}

// What statistics, loss, dt and a temperature tensor are: float32, float64 for float64 inputs.
ScalarType statistics_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

int precision_of(const std::string& name) {
  STD_TORCH_CHECK(name == "ieee" || name == "tf32", "ntxent: precision must be 'ieee' or 'tf32', got '", name, "'");
  return name == "tf32" ? SIMCLR_TF32 : SIMCLR_IEEE;
}

SimclrDevice device_properties() {
  SimclrDevice device;
  check_launch(simclr_query_device(&device), "ntxent");
  return device;
}

// The device pointer of a temperature tensor; it is read there, never here.
const void* temperature_pointer(const std::optional<Tensor>& temperature, ScalarType type) {
  if (!temperature) return nullptr;
  STD_TORCH_CHECK(temperature->is_cuda() && temperature->numel() == 1 && temperature->scalar_type() == type,
                  "ntxent: the temperature tensor must have one element, on the GPU, of the loss's dtype (float32, or "
                  "float64 for float64 inputs); convert it with .to(device, dtype)");
  return temperature->const_data_ptr();
}

Tensor workspace(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

std::tuple<Tensor, Tensor> ntxent_normalize_cuda(const Tensor& z0_any, const Tensor& z1_any, double eps) {
  const DeviceGuard guard(z0_any.get_device_index());
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  const int z_dtype = dtype_of(z0);
  const bool half = z_dtype == SIMCLR_HALF || z_dtype == SIMCLR_BFLOAT16;
  const int64_t n = z0.size(0), d = z0.size(1);
  const int64_t u_columns = simclr_ntxent_operand_columns(d, half ? SIMCLR_HALF : z_dtype);
  Tensor u = torch::stable::new_empty(z0, {2 * n, u_columns}, half ? ScalarType::Half : z0.scalar_type());
  Tensor inv_norm = torch::stable::new_empty(z0, {2 * n}, statistics_type(z0));
  const SimclrNtxentNormalizeArgs args{{z0.const_data_ptr(), z1.const_data_ptr()},
                                       {z0.stride(0), z1.stride(0)},
                                       u.mutable_data_ptr(),
                                       inv_norm.mutable_data_ptr(),
                                       n,
                                       d,
                                       u_columns,
                                       eps,
                                       z_dtype};
  check_launch(simclr_ntxent_normalize(&args, current_stream(z0)), "ntxent_normalize_kernel");
  return {u, inv_norm};
}

std::tuple<Tensor, Tensor, Tensor> ntxent_fwd_cuda(const Tensor& u_any, int64_t n, int64_t row_offset,
                                                   double temperature, std::optional<Tensor> temperature_tensor,
                                                   std::string reduction_name, std::string precision) {
  const DeviceGuard guard(u_any.get_device_index());
  const Tensor u = torch::stable::contiguous(u_any);
  const Reduction reduction = reduction_of(reduction_name, n, u.size(0));
  const ScalarType type = statistics_type(u);
  Tensor loss = reduction.reduce ? torch::stable::new_empty(u, {}, type) : torch::stable::new_empty(u, {2 * n}, type);
  Tensor lse_neg = torch::stable::new_empty(u, {2 * n}, type);
  Tensor s_pos = torch::stable::new_empty(u, {2 * n}, type);
  SimclrNtxentFwdArgs args{u.const_data_ptr(),
                           loss.mutable_data_ptr(),
                           lse_neg.mutable_data_ptr(),
                           s_pos.mutable_data_ptr(),
                           nullptr,
                           temperature_pointer(temperature_tensor, type),
                           n,
                           u.size(0),
                           row_offset,
                           u.size(1),
                           temperature,
                           reduction.scale,
                           reduction.reduce,
                           dtype_of(u),
                           precision_of(precision),
                           device_properties()};
  const Tensor scratch = workspace(u, simclr_ntxent_fwd_workspace_bytes(&args));
  args.workspace = scratch.mutable_data_ptr();
  check_launch(simclr_ntxent_fwd(&args, current_stream(u)), "ntxent_fwd_kernel");
  return {loss, lse_neg, s_pos};
}

std::tuple<Tensor, Tensor, Tensor> ntxent_bwd_cuda(const Tensor& dloss_any, const Tensor& z0_any, const Tensor& z1_any,
                                                   const Tensor& u_any, const Tensor& inv_norm, const Tensor& lse_neg,
                                                   const Tensor& s_pos, int64_t row_offset, std::string reduction_name,
                                                   double eps, double temperature,
                                                   std::optional<Tensor> temperature_tensor, std::string precision,
                                                   bool need_dt) {
  const DeviceGuard guard(z0_any.get_device_index());
  const Tensor dloss = torch::stable::contiguous(dloss_any), u = torch::stable::contiguous(u_any);
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  const int64_t n = z0.size(0), d = z0.size(1);
  const Reduction reduction = reduction_of(reduction_name, n, u.size(0));
  check_gradient(dloss, reduction, u.size(0));
  const ScalarType type = statistics_type(z0);
  STD_TORCH_CHECK(dloss.scalar_type() == type, "ntxent: dloss must have the loss's dtype");
  Tensor dz0 = torch::stable::new_empty(z0, {n, d});
  Tensor dz1 = torch::stable::new_empty(z1, {n, d});
  Tensor dt = torch::stable::new_empty(inv_norm, {});
  SimclrNtxentBwdArgs args{dloss.const_data_ptr(),
                           {z0.const_data_ptr(), z1.const_data_ptr()},
                           u.const_data_ptr(),
                           inv_norm.const_data_ptr(),
                           lse_neg.const_data_ptr(),
                           s_pos.const_data_ptr(),
                           {dz0.mutable_data_ptr(), dz1.mutable_data_ptr()},
                           need_dt ? dt.mutable_data_ptr() : nullptr,
                           nullptr,
                           temperature_pointer(temperature_tensor, type),
                           {z0.stride(0), z1.stride(0)},
                           n,
                           d,
                           u.size(0),
                           row_offset,
                           u.size(1),
                           temperature,
                           reduction.scale,
                           eps,
                           reduction.reduce,
                           dtype_of(z0),
                           precision_of(precision),
                           device_properties()};
  const Tensor scratch = workspace(u, simclr_ntxent_bwd_workspace_bytes(&args));
  args.workspace = scratch.mutable_data_ptr();
  check_launch(simclr_ntxent_bwd(&args, current_stream(z0)), "ntxent_bwd_kernel");
  return {dz0, dz1, dt};
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CUDA, m) {
  m.impl("ntxent_normalize", TORCH_BOX(&ntxent_normalize_cuda));
  m.impl("ntxent_fwd", TORCH_BOX(&ntxent_fwd_cuda));
  m.impl("ntxent_bwd", TORCH_BOX(&ntxent_bwd_cuda));
}

}  // namespace
}  // namespace simclr
#endif
