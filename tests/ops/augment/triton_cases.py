"""The Triton augmentation on CPU tensors, however its launches are run, against torchvision applied per sample."""

from dataclasses import replace

import torch
from torch import Tensor

from simclr_fast.ops.augment import AugmentParams, ImageBatch
from simclr_fast.ops.augment.reference import augment_reference
from simclr_fast.ops.augment.triton_backend import TritonAugment
from tests.helpers import sparse
from tests.ops.augment.compare import TOLERANCE, only, transform

FULL = {"hflip": 0.5, "jitter_p": 0.8, "gray_p": 0.3, "blur_p": 0.5, "solarize_p": 0.3}
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
OUT_TOLERANCE = {torch.float32: TOLERANCE, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def alone(params: AugmentParams, operation: str) -> AugmentParams:
    """The same draws with one operation switched on: a flag, or one of the jitter's four."""
    params = only(params, "jitter" if operation in NEUTRAL else operation)
    others = {name: torch.full_like(params.hue, value) for name, value in NEUTRAL.items() if name != operation}
    return replace(params, **others)


def drawn(images, size, views: int = 2, seed: int = 1, **settings) -> AugmentParams:
    return transform(size, views=views, backend="reference", **settings).sample(images, seed=seed)


def last_of_very_many(image: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 [B, ...] of which only the last, `image` [1, ...], is not black, so many that their views of this
    size have more than 2^31 elements; their parameters [1, B, 16]; and the last image's own [1, 1, 16]."""
    params = drawn(image, size, views=1, blur_kernel=1, jitter_p=0.0, gray_p=0.0).pack()
    batch = 2**31 // (3 * size * size) + 2
    packed = sparse(1, batch, 16, dtype=torch.int32)
    packed[0, -1] = params[0, 0]
    images = sparse(batch, *image.shape[1:], dtype=torch.uint8)
    images[-1] = image[0]
    return images, packed, params


def views_of_batch(
    backend: TritonAugment,
    batch: ImageBatch,
    packed: Tensor,
    size: tuple[int, int],
    blur_kernel: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """The op with these arguments; nothing is normalised by default."""
    statistics = [mean] * batch.channels, [std] * batch.channels
    return backend.augment(
        batch.data, batch.table, packed, batch.channels, *size, *statistics, blur_kernel, dtype, channels_last
    )


def views_of(
    backend: TritonAugment, images, size: tuple[int, int] | int, params: AugmentParams | Tensor, *others, **options
) -> Tensor:
    """The same of images, and of parameters packed or not; others, options: what follows these above."""
    packed = params.pack() if isinstance(params, AugmentParams) else params
    height, width = (size, size) if isinstance(size, int) else size
    return views_of_batch(backend, ImageBatch.of(images), packed, (height, width), *others, **options)


def error(
    backend: TritonAugment,
    images,
    size: tuple[int, int] | int,
    params: AugmentParams,
    blur_kernel: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> float:
    """Largest absolute error, over the tolerance of the output's type: at most 1 is right."""
    actual = views_of(backend, images, size, params, blur_kernel, dtype, channels_last)
    batch = ImageBatch.of(images)
    height, width = (size, size) if isinstance(size, int) else size
    plain = [0.0] * batch.channels, [1.0] * batch.channels
    truth = augment_reference(
        batch.data, batch.table, params.pack(), batch.channels, height, width, *plain, blur_kernel, torch.float32,
        channels_last,
    )  # fmt: skip
    assert actual.shape == truth.shape
    assert actual.dtype == dtype
    assert actual.stride() == truth.stride()
    difference = (actual.double() - truth.double()).abs().nan_to_num(float("inf"))
    return difference.max().item() / OUT_TOLERANCE[dtype]
