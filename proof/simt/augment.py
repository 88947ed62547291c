"""The arguments of the CUDA augmentation's launchers as ctypes structs, made from the tensors that the ops take."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from proof.simt.library import Kernels, Schedule, unwritten
from simclr_fast import SimCLRAugment
from simclr_fast.ops.augment import ImageBatch
from simclr_fast.ops.augment.params import AugmentRecipe
from tests.ntxent_launchers import Guarded

SOURCES = ("csrc/cuda/augment.cu", "csrc/cuda/augment_sample.cu", "proof/simt/kernels/augment_entry.cpp")
IN_ORDER = Schedule()
_PIXEL_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_INT, _LONG, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class _Images(ctypes.Structure):
    """ImageBatch of csrc/augment_launch.h."""

    _fields_ = (
        *((("data", _POINTER), ("type", _INT), ("channels", _INT), ("height", _INT), ("width", _INT))),
        *((f"stride_{axis}", _LONG) for axis in "bchw"),
        ("ragged", _POINTER),
    )


class AugmentArgs(ctypes.Structure):
    """AugmentArgs of csrc/augment_launch.h."""

    _fields_ = (
        *(("images", _Images), ("params", _POINTER), ("out", _POINTER)),
        *(("out_type", _INT), ("channels_last", ctypes.c_bool)),
        *((name, _INT) for name in ("views", "batch", "out_height", "out_width", "blur_kernel")),
        *(("norm_scale", ctypes.c_float * 3), ("norm_shift", ctypes.c_float * 3)),
    )


class AugmentSampleArgs(ctypes.Structure):
    """AugmentSampleArgs of csrc/augment_launch.h."""

    _fields_ = (
        ("recipe", ctypes.c_double * len(AugmentRecipe._fields)),
        *((name, _POINTER) for name in ("seed", "indices", "ragged")),
        *((name, _INT) for name in ("height", "width", "views", "batch")),
        ("params", _POINTER),
    )


def recipe_doubles(aug: SimCLRAugment) -> ctypes.Array:
    """The recipe of AugmentSampleArgs."""
    return (ctypes.c_double * len(AugmentRecipe._fields))(*aug.recipe)


class AugmentPlan(ctypes.Structure):
    """AugmentPlan of csrc/cuda/augment_plan.h."""

    _fields_ = tuple(
        (name, _INT)
        for name in (
            *("tile_width", "tile_height", "tiles_x", "tiles_y", "margin", "pitch", "rows", "staged_row_bytes"),
            *("threads", "shared_bytes"),
        )
    )


class AugmentPlans(ctypes.Structure):
    """AugmentPlans of csrc/cuda/augment_plan.h."""

    _fields_ = (("whole", AugmentPlan), ("mean", AugmentPlan), ("tile", AugmentPlan))


STRUCTS = (AugmentArgs, AugmentSampleArgs, AugmentPlans)


def augment_args(
    images: ImageBatch,
    params: Tensor,
    out: Tensor,
    blur_kernel: int,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> AugmentArgs:
    """params int32 [views, B, 16]; out [views * B, C, H, W], contiguous or channels-last; scale, shift normalise."""
    views, batch = params.shape[:2]
    strides = (0, 0, 0, 0) if images.table is not None else images.data.stride()
    table = None if images.table is None else images.table.data_ptr()
    source = _Images(
        images.data.data_ptr(), _PIXEL_TYPES.index(images.data.dtype), images.channels, *images.size, *strides, table
    )
    return AugmentArgs(
        *(source, params.data_ptr(), out.data_ptr(), _PIXEL_TYPES.index(out.dtype), not out.is_contiguous()),
        *(views, batch, *out.shape[2:], blur_kernel, tuple(scale), tuple(shift)),
    )


def unwritten_views(shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """An output [N, C, H, W] for a kernel to fill, with NaN wherever it does not write."""
    if not channels_last:
        return unwritten(*shape, dtype=dtype)
    n, c, h, w = shape
    return unwritten(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)


def augment(
    kernels: Kernels,
    images: ImageBatch,
    params: Tensor,
    out_size: tuple[int, int],
    blur_kernel: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    schedule: Schedule = IN_ORDER,
) -> Tensor:
    """Every view, not normalised: what simclr_fast::augment computes with mean 0 and std 1."""
    shape = (params.shape[0] * params.shape[1], images.channels, *out_size)
    out = unwritten_views(shape, dtype, channels_last)
    args = augment_args(images, params, out, blur_kernel)
    scratch = Guarded(8 * kernels.value("augment_scratch_doubles", ctypes.byref(args)))
    kernels.call("augment", ctypes.byref(args), scratch.data, schedule=schedule)
    scratch.check("augment")
    return out
