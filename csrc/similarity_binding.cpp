// Registers the C++ kernels of simclr_fast::similarity_{fwd,bwd} for the CPU and, with USE_CUDA, for CUDA; that of
// similarity_fwd_bwd for the CPU.
//
// Each op is one function over a device: it checks, allocates and fills the arguments; the device launches.
#include <optional>
#include <string>
#include <tuple>

#include "loss_binding.h"
#include "similarity_launch.h"

namespace simclr {
namespace {

struct Cpu : CpuDevice {
  static void run(SimclrSimilarityFwdArgs& args, const Tensor&) { cpu::similarity_fwd(args, torch_threads()); }
  static void run(SimclrSimilarityBwdArgs& args, const Tensor&) { cpu::similarity_bwd(args, torch_threads()); }
};

#ifdef USE_CUDA
struct Cuda : CudaDevice {
  template <class Args>
  static void check_not_empty(const Args& args) {
    STD_TORCH_CHECK(args.row_count > 0 && args.column_count > 0,
                    "similarity: on CUDA pass at least one row and column");
  }
  static void run(SimclrSimilarityFwdArgs& args, const Tensor& rows) {
    check_not_empty(args);
    launch(args, rows, simclr_similarity_fwd_workspace_bytes, simclr_similarity_fwd, "similarity_fwd");
  }
  static void run(SimclrSimilarityBwdArgs& args, const Tensor& rows) {
    check_not_empty(args);
    launch(args, rows, simclr_similarity_bwd_workspace_bytes, simclr_similarity_bwd, "similarity_bwd");
  }
};
#endif

template <class Args>
void fill_exclude(Args& args, const std::string& name) {
  STD_TORCH_CHECK(name == "none" || name == "self" || name == "pair",
                  "similarity: exclude must be 'none', 'self' or 'pair', got '", name, "'");
  args.exclude = name == "none" ? SIMCLR_EXCLUDE_NONE : name == "self" ? SIMCLR_EXCLUDE_SELF : SIMCLR_EXCLUDE_PAIR;
  STD_TORCH_CHECK(name != "pair" || args.row_count % 2 == 0, "similarity: exclude='pair' needs an even number of rows");
}

// Rows and columns, which stay alive with the tensors.
template <class Args>
void fill_operands(Args& args, const Tensor& rows, const Tensor& columns) {
  STD_TORCH_CHECK(rows.dim() == columns.dim() && rows.size(-1) == columns.size(-1),
                  "similarity: rows [n, D'] and columns [m, D'] must be of one width");
  STD_TORCH_CHECK(rows.scalar_type() == columns.scalar_type(), "similarity: rows and columns must be of one dtype");
  check_unit_rows(rows);
  check_unit_rows(columns);
  args.rows = rows.const_data_ptr();
  args.columns = columns.const_data_ptr();
  args.row_count = rows.size(0);
  args.column_count = columns.size(0);
  args.u_columns = rows.size(-1);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> similarity_fwd(const Tensor& rows_any, const Tensor& columns_any, int64_t row_offset,
                                                  std::string exclude, bool both, bool need_max, double temperature,
                                                  std::optional<Tensor> temperature_tensor, std::string precision) {
  const typename Device::Guard guard(rows_any);
  const Tensor rows = torch::stable::contiguous(rows_any), columns = torch::stable::contiguous(columns_any);
  SimclrSimilarityFwdArgs args{};
  fill_operands(args, rows, columns);
  args.u_dtype = operand_dtype_of(rows);
  args.row_offset = row_offset;
  fill_exclude(args, exclude);
  fill_precision(args, precision);
  fill_temperature(args, temperature, temperature_tensor, rows);
  const ScalarType type = statistics_type(rows);
  const Tensor lse = allocate(rows, {args.row_count}, type);
  const Tensor max = allocate(rows, {need_max ? args.row_count : 0}, type);
  const Tensor column_lse = allocate(rows, {both ? args.column_count : 0}, type);
  args.lse = lse.mutable_data_ptr();
  args.max = need_max ? max.mutable_data_ptr() : nullptr;
  args.column_lse = both ? column_lse.mutable_data_ptr() : nullptr;
  Device::run(args, rows);
  return {lse, max, column_lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_fwd_bwd(const Tensor& rows_any, const Tensor& inv_norm_any,
                                                              const Tensor& columns_any, int64_t row_offset,
                                                              std::string exclude, bool need_max, double eps,
                                                              double temperature,
                                                              std::optional<Tensor> temperature_tensor) {
  const Tensor rows = torch::stable::contiguous(rows_any), columns = torch::stable::contiguous(columns_any);
  const Tensor inv_norm = torch::stable::contiguous(inv_norm_any);
  SimclrSimilarityFwdBwdArgs args{};
  fill_operands(args, rows, columns);
  check_numbers(inv_norm, args.row_count, rows, "inv_norm");
  args.u_dtype = operand_dtype_of(rows);
  args.row_offset = row_offset;
  args.eps = eps;
  fill_exclude(args, exclude);
  fill_temperature(args, temperature, temperature_tensor, rows);
  const Tensor lse = allocate(rows, {args.row_count}, rows.scalar_type());
  const Tensor max = allocate(rows, {need_max ? args.row_count : 0}, rows.scalar_type());
  const Tensor dlse_dz = allocate(rows, {args.row_count, args.u_columns}, rows.scalar_type());
  const Tensor dlse_dt = allocate(rows, {args.row_count}, rows.scalar_type());
  args.inv_norm = inv_norm.const_data_ptr();
  args.lse = lse.mutable_data_ptr();
  args.max = need_max ? max.mutable_data_ptr() : nullptr;
  args.dlse_dz = dlse_dz.mutable_data_ptr();
  args.dlse_dt = dlse_dt.mutable_data_ptr();
  cpu::similarity_fwd_bwd(args, torch_threads());
  return {lse, max, dlse_dz, dlse_dt};
}

template <class Device>
std::tuple<Tensor, Tensor> similarity_bwd(const Tensor& drows_any, const Tensor& dcolumns_any, const Tensor& z_any,
                                          const Tensor& rows_any, const Tensor& inv_norm, const Tensor& columns_any,
                                          const Tensor& lse_any, const Tensor& column_lse_any, int64_t row_offset,
                                          std::string exclude, double eps, double temperature,
                                          std::optional<Tensor> temperature_tensor, std::string precision,
                                          bool need_dt) {
  const typename Device::Guard guard(z_any);
  const auto contiguous = [](const Tensor& x) { return torch::stable::contiguous(x); };
  const Tensor drows = contiguous(drows_any), dcolumns = contiguous(dcolumns_any), z = with_adjacent_columns(z_any);
  const Tensor rows = contiguous(rows_any), columns = contiguous(columns_any), r = contiguous(inv_norm);
  const Tensor lse = contiguous(lse_any), column_lse = contiguous(column_lse_any);
  check_unit_rows(rows, z);
  SimclrSimilarityBwdArgs args{};
  fill_operands(args, rows, columns);
  STD_TORCH_CHECK(z.dim() == 2 && z.size(0) == args.row_count && z.size(1) <= args.u_columns,
                  "similarity: z must be [n, D], the rows before normalisation");
  check_numbers(drows, args.row_count, z, "drows");
  check_numbers(dcolumns, args.column_count, z, "dcolumns");
  check_numbers(lse, args.row_count, z, "lse");
  check_numbers(column_lse, args.column_count, z, "column_lse");
  check_numbers(r, args.row_count, z, "inv_norm");
  args.row_offset = row_offset;
  args.z_stride = z.stride(0);
  args.d = z.size(1);
  args.eps = eps;
  args.z_dtype = dtype_of(z);
  fill_exclude(args, exclude);
  fill_precision(args, precision);
  fill_temperature(args, temperature, temperature_tensor, rows);
  const Tensor dz = allocate(z, {args.row_count, args.d}, z.scalar_type());
  const Tensor dt = allocate(r, {}, r.scalar_type());
  args.drows = drows.const_data_ptr();
  args.dcolumns = dcolumns.const_data_ptr();
  args.z = z.const_data_ptr();
  args.inv_norm = r.const_data_ptr();
  args.lse = lse.const_data_ptr();
  args.column_lse = column_lse.const_data_ptr();
  args.dz = dz.mutable_data_ptr();
  args.dt = need_dt ? dt.mutable_data_ptr() : nullptr;
  Device::run(args, rows);
  return {dz, dt};
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CPU, m) {
  m.impl("similarity_fwd", TORCH_BOX(&similarity_fwd<Cpu>));
  m.impl("similarity_fwd_bwd", TORCH_BOX(&similarity_fwd_bwd));
  m.impl("similarity_bwd", TORCH_BOX(&similarity_bwd<Cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CUDA, m) {
  m.impl("similarity_fwd", TORCH_BOX(&similarity_fwd<Cuda>));
  m.impl("similarity_bwd", TORCH_BOX(&similarity_bwd<Cuda>));
}
#endif

}  // namespace
}  // namespace simclr
