"""Views whose every pixel is the mean that contrast takes: contrast is the jitter's first operation, its factor 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from simclr_fast.ops.augment import ORDERS, AugmentParams, ImageBatch
from simclr_fast.ops.augment.reference import augment_reference
from tests.ops.augment.compare import OPERATIONS, noise

_BOX = {"top": 13, "left": 9, "height": 45, "width": 50}
_WINDOW = {"resize_height": 131, "resize_width": 9, "shift_y": 31, "shift_x": 3}
# By name: the images; the size of an output that no kernel makes whole; what differs from the whole image, unflipped.
MEANS: dict[str, tuple[Tensor | list[Tensor], tuple[int, int], dict[str, int]]] = {
    "interleaved, flipped": (noise(1, 37, 133, 3).movedim(3, 1), (5, 131), {"hflip": 1}),
    "planar, a crop": (noise(1, 3, 90, 61), (101, 7), _BOX),
    "a window": (noise(1, 30, 41, 3).movedim(3, 1), (100, 5), _WINDOW),
    "far larger": (noise(1, 3, 250, 23), (97, 3), {"hflip": 1}),
    "rows in several pieces": (noise(1, 5, 170, 3).movedim(3, 1).half() / 255, (2, 98), {}),
    "one channel": (noise(2, 1, 33, 20).float() / 255, (98, 21), {}),
    "strided bfloat16": (noise(1, 3, 80, 95).bfloat16()[:, :, 1::2, ::3] / 255, (110, 17), {"hflip": 1}),
    "ragged": ([noise(3, 50, 61), noise(3, 1, 1), noise(80, 33, 3).movedim(2, 0)], (99, 34), {"hflip": 1}),
}


def errors_of_the_mean(
    case: str, augment: Callable[[ImageBatch, Tensor, tuple[int, int]], Tensor]
) -> tuple[float, float]:
    """The largest error of a backend's pixels, and of the reference's, against float64.

    augment: of images, packed params and a size, the views [B, C, height, width], not normalised.
    """
    images, size, fields = MEANS[case]
    batch = ImageBatch.of(images)
    listed = [images[k] for k in range(len(images))]
    sides = [list(image.shape[1:]) for image in listed]
    params = _params(len(listed), {"height": [h for h, _ in sides], "width": [w for _, w in sides]} | fields)
    truth = torch.stack([_mean(image, params, k, size) for k, image in enumerate(listed)])[:, None, None, None]
    packed, plain = params.pack(), ([0.0] * batch.channels, [1.0] * batch.channels)
    reference = augment_reference(
        *(batch.data, batch.table, packed, batch.channels, *size, *plain, 1, torch.float32, False)
    )
    errors = [(out - truth).abs().nan_to_num(float("inf")).max() for out in (augment(batch, packed, size), reference)]
    return errors[0].item(), errors[1].item()


def views_that_lost_the_mean(augment: Callable[[ImageBatch, Tensor, tuple[int, int]], Tensor]) -> list[bool]:
    """Whether all pixels of a view are NaN, of crops without a NaN, with one in the middle, in the last corner, and
    beside the crop."""
    images = noise(4, 3, 40, 50).float() / 255
    images[1, 0, 20, 25] = images[2, 2, 32, 43] = images[3, :, 20, 44] = torch.nan
    params = _params(4, {"top": 3, "left": 4, "height": 30, "width": 40})
    return augment(ImageBatch.of(images), params.pack(), (97, 5)).isnan().flatten(1).all(1).tolist()


def _params(count: int, fields: dict) -> AugmentParams:
    """One view of `count` samples; a field is one number for all of them, or a list."""
    values = dict.fromkeys(AugmentParams.__dataclass_fields__, 0)
    values |= {"jitter": 1, "order": ORDERS.index((1, 3, 0, 2)), "brightness": 1, "saturation": 1, "sigma": 1} | fields
    floats = ("brightness", "contrast", "saturation", "hue", "sigma", "solarize_threshold")
    dtypes = dict.fromkeys(floats, torch.float32) | dict.fromkeys(OPERATIONS, torch.bool)
    tensors = {name: torch.tensor(value, dtype=dtypes.get(name, torch.int32)) for name, value in values.items()}
    return AugmentParams(**{name: tensor.expand(1, count).contiguous() for name, tensor in tensors.items()})


def _mean(image: Tensor, params: AugmentParams, sample: int, size: tuple[int, int]) -> Tensor:
    """The mean in float64."""
    p = {name: value[0, sample].item() for name, value in vars(params).items()}
    image = image.double() / (255 if image.dtype == torch.uint8 else 1)
    crop = image[:, p["top"] : p["top"] + p["height"], p["left"] : p["left"] + p["width"]]
    full = (p["resize_height"] or size[0], p["resize_width"] or size[1])
    resized = torch.nn.functional.interpolate(crop[None], full, mode="bilinear", antialias=True)[0]
    view = resized[:, p["shift_y"] :, p["shift_x"] :][:, : size[0], : size[1]]
    weights = [1.0] if len(view) == 1 else [0.2989, 0.587, 0.114]
    return (view.mean((1, 2)) * torch.tensor(weights, dtype=torch.float64)).sum()
