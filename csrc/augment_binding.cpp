// Registers the C++ and CUDA kernels of simclr_fast::augment and simclr_fast::augment_sample.
//
// Each op is one function over a device: it checks, allocates and fills the arguments; the device launches.
#include <cstring>
#include <optional>
#include <vector>

#include "augment_launch.h"
#include "binding.h"

namespace simclr {
namespace {

PixelType pixel_type(ScalarType type, const char* what) {
  switch (type) {
    case ScalarType::Byte:
      return PixelType::kUint8;
    case ScalarType::Half:
      return PixelType::kFloat16;
    case ScalarType::BFloat16:
      return PixelType::kBfloat16;
    case ScalarType::Float:
      return PixelType::kFloat32;
    default:
      STD_TORCH_CHECK(false, "augment: ", what, " must be uint8, float16, bfloat16 or float32");
  }
}

void check_same_device(const Tensor& tensor, const Tensor& other, const char* names) {
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), names,
                  " must be on one device");
}

const int64_t* ragged_table(const std::optional<Tensor>& table, const Tensor& beside, int64_t batch) {
  if (!table) return nullptr;
  check_same_device(*table, beside, "augment: table and images");
  STD_TORCH_CHECK(table->scalar_type() == ScalarType::Long && table->dim() == 2 && table->size(0) == batch &&
                      table->size(1) == kRaggedColumns && table->is_contiguous(),
                  "augment: table must be a contiguous int64 [batch, ", kRaggedColumns, "]");
  return data<const int64_t>(*table);
}

// The table is trusted by the kernels; on the CPU it costs nothing to check that it stays inside the images.
void check_table(const Tensor& images, const AugmentArgs& args) {
  for (int64_t row = 0; args.images.ragged != nullptr && row < args.batch; ++row) {
    const int64_t* t = args.images.ragged + row * kRaggedColumns;
    const int64_t last = t[kRaggedOffset] + (args.images.channels - 1) * t[kRaggedStrideC] +
                         (t[kRaggedHeight] - 1) * t[kRaggedStrideH] + (t[kRaggedWidth] - 1) * t[kRaggedStrideW];
    STD_TORCH_CHECK(t[kRaggedHeight] >= 1 && t[kRaggedWidth] >= 1 && t[kRaggedOffset] >= 0 && t[kRaggedStrideC] >= 0 &&
                        t[kRaggedStrideH] >= 0 && t[kRaggedStrideW] >= 0 && last < images.numel(),
                    "augment: table row ", row, " leaves the ", images.numel(), " elements of images");
  }
}

struct Cpu : CpuDevice {
  static void run(const AugmentArgs& args, const Tensor& images) {
    check_table(images, args);
    cpu::augment(args, torch_threads());
  }
  static void run(const AugmentSampleArgs& args, const Tensor&) { cpu::augment_sample(args, torch_threads()); }
};

#ifdef USE_CUDA
struct Cuda : CudaDevice {
  static void run(const AugmentArgs& args, const Tensor& images) {
    Tensor sums = torch::stable::new_empty(images, {cuda::augment_scratch_doubles(args)}, ScalarType::Double);
    const int error = cuda::augment(args, data<double>(sums), current_stream(images));
    STD_TORCH_CHECK(error != cuda::kBlurTooLarge, "augment: blur_kernel=", args.blur_kernel,
                    " needs more shared memory than this GPU gives a block; pass a smaller one, or "
                    "backend=\"triton\"");
    check_launch(error, "augment");
  }
  static void run(const AugmentSampleArgs& args, const Tensor& seed) {
    check_launch(cuda::augment_sample(args, current_stream(seed)), "augment_sample_kernel");
  }
};
#endif

template <class Device>
Tensor augment(const Tensor& images, std::optional<Tensor> table, const Tensor& params_any, int64_t channels,
               int64_t out_height, int64_t out_width, std::vector<double> mean, std::vector<double> std,
               int64_t blur_kernel, ScalarType dtype, bool channels_last) {
  const typename Device::Guard guard(images);
  const Tensor params = torch::stable::contiguous(params_any);
  STD_TORCH_CHECK(params.scalar_type() == ScalarType::Int && params.dim() == 3 &&
                      params.size(2) * sizeof(int32_t) == sizeof(AugmentParams),
                  "augment: params must be int32 [views, batch, 16]");
  check_same_device(params, images, "augment: params and images");
  const int64_t views = params.size(0), batch = params.size(1);
  STD_TORCH_CHECK(channels == 1 || channels == 3, "augment: channels must be 1 or 3, got ", channels);
  STD_TORCH_CHECK(static_cast<int64_t>(mean.size()) == channels && static_cast<int64_t>(std.size()) == channels,
                  "augment: mean and std need one number per channel (", channels, ")");
  STD_TORCH_CHECK(out_height >= 1 && out_width >= 1, "augment: the output must have at least one pixel");
  STD_TORCH_CHECK(
      blur_kernel >= 1 && blur_kernel % 2 == 1 && blur_kernel / 2 < out_height && blur_kernel / 2 < out_width,
      "augment: blur_kernel must be odd, with half of it less than the output's sides; got ", blur_kernel);

  AugmentArgs args{};
  args.images.data = data<const void>(images);
  args.images.type = pixel_type(images.scalar_type(), "images");
  args.images.channels = static_cast<int32_t>(channels);
  args.images.ragged = ragged_table(table, images, batch);
  if (!table) {
    STD_TORCH_CHECK(images.dim() == 4 && images.size(0) == batch && images.size(1) == channels && images.size(2) >= 1 &&
                        images.size(3) >= 1,
                    "augment: images must be [batch, channels, height, width] for params of ", batch, " samples");
    args.images.height = static_cast<int32_t>(images.size(2));
    args.images.width = static_cast<int32_t>(images.size(3));
    args.images.stride_b = images.stride(0);
    args.images.stride_c = images.stride(1);
    args.images.stride_h = images.stride(2);
    args.images.stride_w = images.stride(3);
  }
  args.params = data<const AugmentParams>(params);
  args.out_type = pixel_type(dtype, "dtype");
  STD_TORCH_CHECK(args.out_type != PixelType::kUint8, "augment: dtype must be a floating-point type");
  args.channels_last = channels_last;
  args.views = static_cast<int32_t>(views);
  args.batch = static_cast<int32_t>(batch);
  args.out_height = static_cast<int32_t>(out_height);
  args.out_width = static_cast<int32_t>(out_width);
  args.blur_kernel = static_cast<int32_t>(blur_kernel);
  for (int64_t c = 0; c < channels; ++c) {
    args.norm_scale[c] = static_cast<float>(1.0 / std[c]);
    args.norm_shift[c] = static_cast<float>(-mean[c] / std[c]);
  }

  // Channels-last is a contiguous [N, H, W, C] seen as [N, C, H, W].
  const std::vector<int64_t> planar = {views * batch, channels, out_height, out_width};
  const std::vector<int64_t> interleaved = {views * batch, out_height, out_width, channels};
  Tensor out = torch::stable::new_empty(images, channels_last ? interleaved : planar, dtype);
  args.out = data<void>(out);
  if (views * batch > 0) Device::run(args, images);
  // Two transpositions, because torch 2.11's stable headers have no permute: [N, H, W, C], [N, C, W, H], [N, C, H, W].
  return channels_last ? torch::stable::transpose(torch::stable::transpose(out, 1, 3), 2, 3) : out;
}

template <class Device>
Tensor augment_sample(const Tensor& seed, std::optional<Tensor> indices_any, std::optional<Tensor> table,
                      int64_t height, int64_t width, int64_t batch, int64_t views, std::vector<double> recipe) {
  const typename Device::Guard guard(seed);
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "augment_sample: seed must be int64 [1]");
  STD_TORCH_CHECK(recipe.size() == kRecipeDoubles, "augment_sample: recipe must hold ", kRecipeDoubles, " numbers");
  STD_TORCH_CHECK(table || (height >= 1 && width >= 1) || batch == 0, "augment_sample: images have no pixels");
  std::optional<Tensor> indices;
  if (indices_any) {
    indices = torch::stable::contiguous(*indices_any);
    STD_TORCH_CHECK(indices->scalar_type() == ScalarType::Long && indices->numel() == batch,
                    "augment_sample: indices must be int64 [batch]");
    check_same_device(*indices, seed, "augment_sample: indices and seed");
  }
  Tensor params =
      torch::stable::new_empty(seed, {views, batch, int64_t{sizeof(AugmentParams) / sizeof(int32_t)}}, ScalarType::Int);
  AugmentSampleArgs args{};
  std::memcpy(&args.recipe, recipe.data(), sizeof(args.recipe));
  args.seed = data<const int64_t>(seed);
  args.indices = indices ? data<const int64_t>(*indices) : nullptr;
  args.ragged = ragged_table(table, seed, batch);
  args.height = static_cast<int32_t>(height);
  args.width = static_cast<int32_t>(width);
  args.views = static_cast<int32_t>(views);
  args.batch = static_cast<int32_t>(batch);
  args.params = data<AugmentParams>(params);
  if (views * batch > 0) Device::run(args, seed);
  return params;
}

STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CPU, m) {
  m.impl("augment", TORCH_BOX(&augment<Cpu>));
  m.impl("augment_sample", TORCH_BOX(&augment_sample<Cpu>));
}

#ifdef USE_CUDA
STABLE_TORCH_LIBRARY_IMPL(simclr_fast, CUDA, m) {
  m.impl("augment", TORCH_BOX(&augment<Cuda>));
  m.impl("augment_sample", TORCH_BOX(&augment_sample<Cuda>));
}
#endif

}  // namespace
}  // namespace simclr
