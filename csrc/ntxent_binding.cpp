// Registers the C++ kernels of simclr_fast::ntxent_{normalize,fwd,normalize_fwd,bwd,fwd_bwd} for the CPU and, with
// USE_CUDA, for CUDA.
//
// Each op is one function over a device: it checks, allocates and fills the arguments; the device launches.
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "loss_binding.h"

namespace simclr {
namespace {

struct Cpu : CpuDevice {
  static Tensor operands(const Tensor& z, int64_t rows, int64_t d) {
    return allocate(z, {rows, d}, statistics_type(z));
  }
  static void run(SimclrNtxentNormalizeArgs& args, const Tensor&) { cpu::ntxent_normalize(args, torch_threads()); }
  static void run(SimclrNtxentFwdArgs& args, const Tensor&) { cpu::ntxent_fwd(args, torch_threads()); }
  static void run(SimclrNtxentBwdArgs& args, const Tensor&) { cpu::ntxent_bwd(args, torch_threads()); }
};

#ifdef USE_CUDA
struct Cuda : CudaDevice {
  static Tensor operands(const Tensor& z, int64_t rows, int64_t d) {
    const int z_dtype = dtype_of(z), u_dtype = z_dtype == SIMCLR_BFLOAT16 ? SIMCLR_HALF : z_dtype;
    const int64_t columns = simclr_ntxent_operand_columns(d, u_dtype);
    if (u_dtype == SIMCLR_DOUBLE) return allocate(z, {rows, columns}, ScalarType::Double);
    if (u_dtype == SIMCLR_HALF) return allocate(z, {rows, columns}, ScalarType::Half);
    return allocate(z, {rows, 2, columns}, ScalarType::Half);
  }
  static void run(SimclrNtxentNormalizeArgs& args, const Tensor& u) {
    check_launch(simclr_ntxent_normalize(&args, current_stream(u)), "ntxent_normalize_kernel");
  }
  static void run(SimclrNtxentFwdArgs& args, const Tensor& u) {
    launch(args, u, simclr_ntxent_fwd_workspace_bytes, simclr_ntxent_fwd, "ntxent_fwd_kernel");
  }
  static void run(SimclrNtxentBwdArgs& args, const Tensor& u) {
    launch(args, u, simclr_ntxent_bwd_workspace_bytes, simclr_ntxent_bwd, "ntxent_bwd_kernel");
  }
  static void run(SimclrNtxentFwdBwdArgs& args, const Tensor& z) {
    launch(args, z, simclr_ntxent_fwd_bwd_workspace_bytes, simclr_ntxent_fwd_bwd, "ntxent_fwd_bwd");
  }
};
#endif

// Whether the row losses are added up, and what each is multiplied by in the gradient: row_scale of
// simclr_fast/ops/ntxent/reference.py, for n samples of each process and the columns of all.
template <class Args>
void fill_reduction(Args& args, const std::string& name) {
  STD_TORCH_CHECK(name == "mean" || name == "sum" || name == "none",
                  "ntxent: reduction must be 'mean', 'sum' or 'none', got '", name, "'");
  args.reduce = name != "none";
  args.scale = name == "none"   ? 1.0
               : name == "mean" ? 1.0 / static_cast<double>(2 * args.n)
                                : static_cast<double>(args.columns) / static_cast<double>(2 * args.n);
}

// The process's own rows lie among those of all.
template <class Args>
void check_own_rows(const Args& args) {
  STD_TORCH_CHECK(args.n > 0 && args.row_offset >= 0 && args.row_offset + 2 * args.n <= args.columns, "ntxent: 2 x ",
                  args.n, " rows from row ", args.row_offset, " on are not among the ", args.columns, " unit rows");
}

template <class Device>
std::tuple<Tensor, Tensor> ntxent_normalize(const Tensor& z0_any, const Tensor& z1_any, double eps) {
  const typename Device::Guard guard(z0_any);
  check_embeddings(z0_any, z1_any);
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  SimclrNtxentNormalizeArgs args{};
  args.z[0] = z0.const_data_ptr();
  args.z[1] = z1.const_data_ptr();
  args.z_stride[0] = z0.stride(0);
  args.z_stride[1] = z1.stride(0);
  args.n[0] = z0.size(0);
  args.n[1] = z1.size(0);
  args.d = z0.size(1);
  args.eps = eps;
  args.z_dtype = dtype_of(z0);
  const int64_t rows = args.n[0] + args.n[1];
  Tensor u = Device::operands(z0, rows, args.d);
  args.u_columns = u.size(-1);
  Tensor inv_norm = allocate(z0, {rows}, statistics_type(z0));
  args.u = u.mutable_data_ptr();
  args.inv_norm = inv_norm.mutable_data_ptr();
  Device::run(args, u);
  return {u, inv_norm};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> ntxent_fwd(const Tensor& u_any, int64_t n, int64_t row_offset, double temperature,
                                              std::optional<Tensor> temperature_tensor, std::string reduction,
                                              std::string precision) {
  const typename Device::Guard guard(u_any);
  const Tensor u = torch::stable::contiguous(u_any);
  check_unit_rows(u);
  SimclrNtxentFwdArgs args{};
  args.u = u.const_data_ptr();
  args.u_dtype = operand_dtype_of(u);
  args.n = n;
  args.columns = u.size(0);
  args.row_offset = row_offset;
  args.u_columns = u.size(-1);
  check_own_rows(args);
  fill_reduction(args, reduction);
  fill_precision(args, precision);
  fill_temperature(args, temperature, temperature_tensor, u);
  const ScalarType type = statistics_type(u);
  Tensor loss = args.reduce ? allocate(u, {}, type) : allocate(u, {2 * n}, type);
  Tensor lse_neg = allocate(u, {2 * n}, type);
  Tensor s_pos = allocate(u, {2 * n}, type);
  args.loss = loss.mutable_data_ptr();
  args.lse_neg = lse_neg.mutable_data_ptr();
  args.s_pos = s_pos.mutable_data_ptr();
  Device::run(args, u);
  return {loss, lse_neg, s_pos};
}

// Both steps of a process that is alone, which gathers nothing in between: one call of an op instead of two.
template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ntxent_normalize_fwd(const Tensor& z0, const Tensor& z1, double eps,
                                                                        double temperature,
                                                                        std::optional<Tensor> temperature_tensor,
                                                                        std::string reduction, std::string precision) {
  check_views(z0, z1);
  const auto [u, inv_norm] = ntxent_normalize<Device>(z0, z1, eps);
  const auto [loss, lse_neg, s_pos] = ntxent_fwd<Device>(u, z0.size(0), 0, temperature, std::move(temperature_tensor),
                                                         std::move(reduction), std::move(precision));
  return {loss, u, inv_norm, lse_neg, s_pos};
}

// What a forward leaves to the backward: unit rows and statistics, all contiguous.
struct Saved {
  Tensor u, inv_norm, lse_neg, s_pos;
};

// The arguments of a backward but for what it writes and what arrives from above.
SimclrNtxentBwdArgs bwd_args(const Tensor& z0, const Tensor& z1, const Saved& saved, int64_t row_offset,
                             const std::string& reduction, double eps, double temperature,
                             const std::optional<Tensor>& temperature_tensor, const std::string& precision) {
  SimclrNtxentBwdArgs args{};
  args.n = z0.size(0);
  args.d = z0.size(1);
  args.columns = saved.u.size(0);
  args.row_offset = row_offset;
  args.u_columns = saved.u.size(-1);
  check_own_rows(args);
  args.eps = eps;
  fill_reduction(args, reduction);
  fill_precision(args, precision);
  fill_temperature(args, temperature, temperature_tensor, saved.u);
  args.z[0] = z0.const_data_ptr();
  args.z[1] = z1.const_data_ptr();
  args.z_stride[0] = z0.stride(0);
  args.z_stride[1] = z1.stride(0);
  args.u = saved.u.const_data_ptr();
  args.inv_norm = saved.inv_norm.const_data_ptr();
  args.lse_neg = saved.lse_neg.const_data_ptr();
  args.s_pos = saved.s_pos.const_data_ptr();
  return args;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> ntxent_bwd(const Tensor& dloss_any, const Tensor& z0_any, const Tensor& z1_any,
                                              const Tensor& u_any, const Tensor& inv_norm, const Tensor& lse_neg,
                                              const Tensor& s_pos, int64_t row_offset, std::string reduction,
                                              double eps, double temperature, std::optional<Tensor> temperature_tensor,
                                              std::string precision, bool need_dt) {
  const typename Device::Guard guard(z0_any);
  check_views(z0_any, z1_any);
  const auto contiguous = [](const Tensor& x) { return torch::stable::contiguous(x); };
  const Tensor dloss = contiguous(dloss_any), z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  const Saved saved{contiguous(u_any), contiguous(inv_norm), contiguous(lse_neg), contiguous(s_pos)};
  check_unit_rows(saved.u, z0);
  check_numbers(saved.inv_norm, 2 * z0.size(0), z0, "inv_norm");
  check_numbers(saved.lse_neg, saved.u.size(0), z0, "lse_neg");
  check_numbers(saved.s_pos, saved.u.size(0), z0, "s_pos");
  SimclrNtxentBwdArgs args =
      bwd_args(z0, z1, saved, row_offset, reduction, eps, temperature, temperature_tensor, precision);
  const int64_t expected = args.reduce ? 1 : args.columns;
  STD_TORCH_CHECK(dloss.numel() == expected, "ntxent: dloss must have ", expected, " elements, it has ", dloss.numel());
  STD_TORCH_CHECK(dloss.scalar_type() == statistics_type(z0), "ntxent: dloss must have the loss's dtype");
  Tensor dz0 = allocate(z0, {args.n, args.d}, z0.scalar_type());
  Tensor dz1 = allocate(z1, {args.n, args.d}, z1.scalar_type());
  Tensor dt = allocate(inv_norm, {}, inv_norm.scalar_type());
  args.z_dtype = dtype_of(z0);
  args.dloss = dloss.const_data_ptr();
  args.dz[0] = dz0.mutable_data_ptr();
  args.dz[1] = dz1.mutable_data_ptr();
  args.dt = need_dt ? dt.mutable_data_ptr() : nullptr;
  Device::run(args, saved.u);
  return {dz0, dz1, dt};
}

// The three steps of a process that is alone, for a scalar loss, of which all that arrives from above is a factor: its
// gradient for the factor 1, in the type of the loss, which the factor has yet to meet.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> ntxent_fwd_bwd(const Tensor& z0_any, const Tensor& z1_any, double eps,
                                                  double temperature, std::optional<Tensor> temperature_tensor,
                                                  std::string reduction, std::string precision, bool need_dt) {
  STD_TORCH_CHECK(reduction != "none", "ntxent: reduction must be 'mean' or 'sum' where forward makes the gradient");
  const typename Device::Guard guard(z0_any);
  check_views(z0_any, z1_any);
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  const auto [u, inv_norm] = ntxent_normalize<Device>(z0, z1, eps);
  const auto [loss, lse_neg, s_pos] =
      ntxent_fwd<Device>(u, z0.size(0), 0, temperature, temperature_tensor, reduction, precision);
  SimclrNtxentBwdArgs args =
      bwd_args(z0, z1, {u, inv_norm, lse_neg, s_pos}, 0, reduction, eps, temperature, temperature_tensor, precision);
  Tensor dz = allocate(inv_norm, {2, args.n, args.d}, inv_norm.scalar_type());
  Tensor dt = allocate(inv_norm, {}, inv_norm.scalar_type());
  args.z_dtype = dtype_of(dz);  // of what is written; the CPU reads u, not z
  char* gradient = static_cast<char*>(dz.mutable_data_ptr());
  args.dz[0] = gradient;
  args.dz[1] = gradient + args.n * args.d * static_cast<int64_t>(dz.element_size());
  args.dt = need_dt ? dt.mutable_data_ptr() : nullptr;
  Device::run(args, u);
  return {loss, dz, dt};
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CPU, m) {
  m.impl("ntxent_normalize", TORCH_BOX(&ntxent_normalize<Cpu>));
  m.impl("ntxent_fwd", TORCH_BOX(&ntxent_fwd<Cpu>));
  m.impl("ntxent_normalize_fwd", TORCH_BOX(&ntxent_normalize_fwd<Cpu>));
  m.impl("ntxent_bwd", TORCH_BOX(&ntxent_bwd<Cpu>));
  m.impl("ntxent_fwd_bwd", TORCH_BOX(&ntxent_fwd_bwd<Cpu>));
}

#ifdef USE_CUDA
// The same on CUDA, where the launcher makes one launch of the three steps if it can.
template <>
std::tuple<Tensor, Tensor, Tensor> ntxent_fwd_bwd<Cuda>(const Tensor& z0_any, const Tensor& z1_any, double eps,
                                                        double temperature, std::optional<Tensor> temperature_tensor,
                                                        std::string reduction, std::string precision, bool need_dt) {
  STD_TORCH_CHECK(reduction == "mean" || reduction == "sum", "ntxent: reduction must be 'mean' or 'sum', got '",
                  reduction, "'");
  const Cuda::Guard guard(z0_any);
  check_views(z0_any, z1_any);
  const Tensor z0 = with_adjacent_columns(z0_any), z1 = with_adjacent_columns(z1_any);
  SimclrNtxentFwdBwdArgs args{};
  args.n = z0.size(0);
  args.d = z0.size(1);
  args.eps = eps;
  args.scale = reduction == "mean" ? 1.0 / static_cast<double>(2 * args.n) : 1.0;
  args.z_dtype = dtype_of(z0);
  fill_precision(args, precision);
  fill_temperature(args, temperature, temperature_tensor, z0);
  const ScalarType type = statistics_type(z0);
  Tensor loss = allocate(z0, {}, type), dt = allocate(z0, {}, type);
  Tensor dz = allocate(z0, {2, args.n, args.d}, type);
  args.z[0] = z0.const_data_ptr();
  args.z[1] = z1.const_data_ptr();
  args.z_stride[0] = z0.stride(0);
  args.z_stride[1] = z1.stride(0);
  args.loss = loss.mutable_data_ptr();
  args.dz = dz.mutable_data_ptr();
  args.dt = need_dt ? dt.mutable_data_ptr() : nullptr;
  Cuda::run(args, z0);
  return {loss, dz, dt};
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CUDA, m) {
  m.impl("ntxent_normalize", TORCH_BOX(&ntxent_normalize<Cuda>));
  m.impl("ntxent_fwd", TORCH_BOX(&ntxent_fwd<Cuda>));
  m.impl("ntxent_normalize_fwd", TORCH_BOX(&ntxent_normalize_fwd<Cuda>));
  m.impl("ntxent_bwd", TORCH_BOX(&ntxent_bwd<Cuda>));
  m.impl("ntxent_fwd_bwd", TORCH_BOX(&ntxent_fwd_bwd<Cuda>));
}
#endif

}  // namespace
}  // namespace simclr
