"""simclr_fast::augment and ::augment_sample: schemas, fakes, and the functions that pick a backend.

The C++ kernels register themselves for CPU and CUDA when the extension is loaded; Triton and the reference have ops of
their own (suffix), so that one dispatch key holds one kernel. None is differentiable: images need no gradient.
"""

import torch
from torch import Tensor

from simclr_fast.backends import Op, describe, has_triton, resolve_backend
from simclr_fast.ops.augment.images import ImageBatch
from simclr_fast.ops.augment.params import PACKED_WORDS, AugmentRecipe
from simclr_fast.ops.augment.reference import augment_reference
from simclr_fast.ops.augment.reference_sampling import sample_reference

# images [B, C, H, W] of any strides, or flat with table int64 [B, 6] (see ImageBatch); params int32 [views, B, 16]
_SCHEMA = (
    "(Tensor images, Tensor? table, Tensor params, int channels, int out_height, int out_width, float[] mean, "
    "float[] std, int blur_kernel, ScalarType dtype, bool channels_last) -> Tensor"
)
# seed int64 [1]; indices int64 [batch] or None for 0..batch-1; height and width count where table is None;
# recipe: the numbers of AugmentRecipe
_SAMPLE_SCHEMA = (
    "(Tensor seed, Tensor? indices, Tensor? table, SymInt height, SymInt width, SymInt batch, int views, "
    "float[] recipe) -> Tensor"
)


def _fake_augment(images, table, params, channels, out_height, out_width, mean, std, blur_kernel, dtype, channels_last):
    shape = (params.shape[0] * params.shape[1], channels, out_height, out_width)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)


def _fake_sample(seed, indices, table, height, width, batch, views, recipe):
    return torch.empty((views, batch, PACKED_WORDS), dtype=torch.int32, device=seed.device)


_OPS = {}
for _backend, _suffix in (("cpp", ""), ("triton", "_triton"), ("reference", "_reference")):
    for _name, _schema, _fake in (
        (f"augment{_suffix}", _SCHEMA, _fake_augment),
        (f"augment_sample{_suffix}", _SAMPLE_SCHEMA, _fake_sample),
    ):
        torch.library.define(f"simclr_fast::{_name}", _schema)
        torch.library.register_fake(f"simclr_fast::{_name}", _fake)
        _OPS[_backend, _name.removesuffix(_suffix)] = getattr(torch.ops.simclr_fast, _name).default
        describe(_name.removesuffix(_suffix), Op(called="SimCLRAugment"))

torch.library.register_kernel("simclr_fast::augment_reference", ("cpu", "cuda"), augment_reference)
torch.library.register_kernel("simclr_fast::augment_sample_reference", ("cpu", "cuda"), sample_reference)

if has_triton():
    from simclr_fast.ops.augment import triton_backend

    torch.library.register_kernel("simclr_fast::augment_triton", "cuda", triton_backend.augment)
    torch.library.register_kernel("simclr_fast::augment_sample_triton", "cuda", triton_backend.augment_sample)


def sample(
    images: ImageBatch, recipe: AugmentRecipe, views: int, seed: Tensor, indices: Tensor | None, backend: str
) -> Tensor:
    """Packed parameters int32 [views, B, 16], drawn from (seed, sample index, view) alone.

    seed: int64 [1]; indices: int64 [B], or None for 0..B-1; both on the images' device. Every backend draws the same.
    """
    op = _OPS[resolve_backend(backend, "augment_sample", images.data.device), "augment_sample"]
    return op(seed, indices, images.table, *images.size, images.batch_size, views, list(recipe))


def augment(
    images: ImageBatch,
    params: Tensor,
    out_size: tuple[int, int],
    mean: list[float],
    std: list[float],
    blur_kernel: int,
    dtype: torch.dtype,
    channels_last: bool,
    backend: str,
) -> Tensor:
    """[views * B, C, *out_size], view-major; params int32 [views, B, 16] on the images' device."""
    op = _OPS[resolve_backend(backend, "augment", images.data.device), "augment"]
    return op(
        images.data, images.table, params, images.channels, *out_size, mean, std, blur_kernel, dtype, channels_last
    )
