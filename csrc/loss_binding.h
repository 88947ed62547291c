// What the bindings of the losses share: element types, and the options that every loss has.
#pragma once

#include <optional>
#include <string>

#include "binding.h"
#include "ntxent_launch.h"

namespace simclr {

inline int dtype_of(const Tensor& x) {
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
      STD_TORCH_CHECK(false, "simclr_fast: embeddings must be float16, bfloat16, float32 or float64");
  }
}

// What statistics, loss, dt and a temperature tensor are: float32, float64 for float64 inputs.
inline ScalarType statistics_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Views, or two sets of embeddings that are normalised together.
inline void check_embeddings(const Tensor& z0, const Tensor& z1) {
  STD_TORCH_CHECK(z0.dim() == 2 && z1.dim() == 2 && z0.size(1) == z1.size(1) && z0.scalar_type() == z1.scalar_type() &&
                      z0.is_cuda() == z1.is_cuda(),
                  "ntxent: z0 and z1 must be [n, D], of one D, dtype and device");
}

inline void check_views(const Tensor& z0, const Tensor& z1) {
  check_embeddings(z0, z1);
  STD_TORCH_CHECK(z0.size(0) == z1.size(0), "ntxent: z0 and z1 must have as many rows, they have ", z0.size(0), " and ",
                  z1.size(0));
}

// What unit rows u are, as ntxent_normalize makes them of embeddings: on CUDA fp16, for float32 embeddings in two parts,
// which are a dimension of their own.
inline int operand_dtype_of(const Tensor& u) { return u.is_cuda() && u.dim() == 3 ? SIMCLR_FLOAT : dtype_of(u); }
inline bool are_unit_rows(const Tensor& u) {
  const int dtype = operand_dtype_of(u);
  if (!u.is_cuda()) return u.dim() == 2 && (dtype == SIMCLR_FLOAT || dtype == SIMCLR_DOUBLE);
  if (dtype == SIMCLR_FLOAT) return u.scalar_type() == ScalarType::Half && u.dim() == 3 && u.size(1) == 2;
  return u.dim() == 2 && (dtype == SIMCLR_HALF || dtype == SIMCLR_DOUBLE);
}

// A forward has no embeddings but u.
inline void check_unit_rows(const Tensor& u) {
  STD_TORCH_CHECK(are_unit_rows(u),
                  "simclr_fast: the unit rows have another dtype or shape than ntxent_normalize gives them: float32, "
                  "float64 for float64 embeddings; on CUDA float16 [n, D'] for half ones and [n, 2, D'] for float32");
#ifdef USE_CUDA
  STD_TORCH_CHECK(!u.is_cuda() || simclr_ntxent_operand_columns(u.size(-1), operand_dtype_of(u)) == u.size(-1),
                  "simclr_fast: unit rows of ", u.size(-1),
                  " columns are not whole 16 bytes, as ntxent_normalize's are");
#endif
}
inline void check_unit_rows(const Tensor& u, const Tensor& z) {
  check_unit_rows(u);
  const int z_dtype = dtype_of(z), of_z = z_dtype == SIMCLR_BFLOAT16 ? SIMCLR_HALF : z_dtype;
  const int expected = of_z == SIMCLR_HALF && !u.is_cuda() ? SIMCLR_FLOAT : of_z;
  STD_TORCH_CHECK(
      operand_dtype_of(u) == expected,
      "simclr_fast: the unit rows have another dtype than ntxent_normalize gives them for these embeddings");
}

// One number for each of `count` rows or columns, of the type of the log-sum-exps of embeddings like these.
inline void check_numbers(const Tensor& x, int64_t count, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(x.numel() == count && x.scalar_type() == statistics_type(like), "simclr_fast: ", name, " must have ",
                  count, " elements of the log-sum-exps' dtype, it has ", x.numel());
}

#ifdef USE_CUDA
// Launches on the device of `like`, with a workspace of as many bytes as the launch takes there.
template <class Args>
void launch(Args& args, const Tensor& like, int64_t (*workspace_bytes)(const Args*), int (*start)(const Args*, void*),
            const char* name) {
  check_launch(simclr_query_device(&args.device), name);
  const Tensor workspace = allocate(like, {workspace_bytes(&args)}, ScalarType::Byte);
  args.workspace = workspace.mutable_data_ptr();
  check_launch(start(&args, current_stream(like)), name);
}
#endif

inline Tensor with_adjacent_columns(const Tensor& z) {
  return z.size(1) == 1 || z.stride(1) == 1 ? z : torch::stable::contiguous(z);
}

template <class Args>
void fill_precision(Args& args, const std::string& name) {
  STD_TORCH_CHECK(name == "ieee" || name == "tf32", "simclr_fast: precision must be 'ieee' or 'tf32', got '", name,
                  "'");
  args.precision = name == "tf32" ? SIMCLR_TF32 : SIMCLR_IEEE;
}

// A temperature tensor on a GPU is read there, never here.
template <class Args>
void fill_temperature(Args& args, double value, const std::optional<Tensor>& tensor, const Tensor& u) {
  args.temperature = value;
  if (!tensor) return;
  STD_TORCH_CHECK(
      tensor->is_cuda() == u.is_cuda() && tensor->numel() == 1 && tensor->scalar_type() == statistics_type(u),
      "simclr_fast: the temperature tensor must have one element, on the embeddings' device, of the loss's dtype "
      "(float32, or float64 for float64 inputs); convert it with .to(device, dtype)");
  args.temperature_ptr = tensor->const_data_ptr();
}

}  // namespace simclr
