"""Runs a backend and the torchvision reference on the same drawn parameters, before normalisation."""

from dataclasses import replace

import torch
from torch import Tensor

from simclr_fast import SimCLRAugment
from simclr_fast.ops.augment import AugmentParams
from tests.helpers import moved

Place = tuple[str, str]
TOLERANCE = 1e-5
OPERATIONS = ("hflip", "jitter", "gray", "blur", "solarize")


def noise(*shape: int, seed: int = 0) -> Tensor:
    """uint8 images without any smoothness: neighbouring pixels differ as much as they can."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def transform(size, **settings) -> SimCLRAugment:
    """A transform whose output is the image itself: no normalisation."""
    return SimCLRAugment(size, mean=0.0, std=1.0, **settings)


def only(params: AugmentParams, *operations: str) -> AugmentParams:
    """The same draws with just these operations switched on, for every view."""
    switches = {name: torch.full_like(params.hflip, name in operations) for name in OPERATIONS}
    return replace(params, **switches)


def move(images, device: str):
    """Images on the device, at the same strides."""
    return moved(images, device) if isinstance(images, Tensor) else [moved(image, device) for image in images]


def errors(place: Place, images, size, params: AugmentParams, **settings) -> Tensor:
    """Largest absolute error of each output image."""
    device, backend = place
    truth = transform(size, views=params.views, backend="reference", **settings).apply(images, params)
    actual = transform(size, views=params.views, backend=backend, **settings).apply(
        move(images, device), params.to(device)
    )
    assert actual.shape == truth.shape
    assert actual.dtype == truth.dtype
    assert actual.stride() == truth.stride()
    return (actual.cpu().double() - truth.double()).abs().flatten(1).amax(1)


# Operations by the name of the draw that they leave at its neutral value, and those that have a switch.
NAN_OPERATIONS = ("none", "brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize")


def nan_views(operation: str, channels: int, dtype: torch.dtype):
    """Images [2, channels, 12, 12] with one NaN pixel each, a transform of a backend, and draws of one operation."""
    images = noise(2, channels, 12, 12).float() / 255
    images[0, 0, 5, 6] = images[1, -1, 3, 2] = torch.nan
    of_backend = lambda backend: transform(12, views=1, backend=backend, dtype=dtype, blur_kernel=3)
    params = of_backend("reference").sample(images, seed=1)
    box = {"top": 0, "left": 0, "height": 12, "width": 12, "order": 0, "sigma": 1.0, "solarize_threshold": 0.5}
    box |= {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    if operation in ("brightness", "contrast", "saturation", "hue"):
        box[operation] = 0.3
    params = replace(params, **{name: torch.full_like(getattr(params, name), value) for name, value in box.items()})
    return images, of_backend, only(params, "jitter", operation)
