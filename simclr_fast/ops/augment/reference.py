"""The augmentation as a loop over samples of torchvision.transforms.v2.functional: the ground truth for the kernels.

Slow and readable: about a millisecond per 32-pixel image. Needs torchvision.
"""

import torch
from torch import Tensor

from simclr_fast.ops.augment.params import JITTER_OPS, ORDERS, AugmentParams


def augment_one(image: Tensor, p: dict[str, float], out_height: int, out_width: int, blur_kernel: int) -> Tensor:
    """One view of one image [C, H, W] (uint8 or float), before normalisation: float32 [C, out_height, out_width].

    p: the fields of AugmentParams as numbers. A jitter factor that changes nothing is skipped, as ColorJitter skips it.
    """
    from torchvision.transforms.v2 import functional as F

    x = F.to_dtype(image, torch.float32, scale=True)
    resized = [p["resize_height"] or out_height, p["resize_width"] or out_width]
    x = _resize(F.crop(x, p["top"], p["left"], p["height"], p["width"]), resized)
    x = x[:, p["shift_y"] : p["shift_y"] + out_height, p["shift_x"] : p["shift_x"] + out_width]
    if p["hflip"]:
        x = F.horizontal_flip(x)
    if p["jitter"]:
        for op in (JITTER_OPS[k] for k in ORDERS[p["order"]]):
            if p[op] != (0.0 if op == "hue" else 1.0):
                x = getattr(F, f"adjust_{op}")(x, p[op])
    if p["gray"]:
        x = F.rgb_to_grayscale(x, num_output_channels=x.shape[0])
    if p["blur"]:
        x = F.gaussian_blur(x, [blur_kernel, blur_kernel], [p["sigma"], p["sigma"]])
    if p["solarize"]:
        x = F.solarize(x, p["solarize_threshold"])
    return x


def _resize(x: Tensor, size: list[int]) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    if size[1] > 1:
        return F.resize(x, size, antialias=True)
    # torch's antialiased interpolation repeats one row where the output is one pixel wide (seen in 2.14): a single
    # column counts as contiguous in either layout, and it takes the wrong strides. Two equal columns avoid that.
    column = F.resize(x, [x.shape[1], 1], antialias=True)
    return F.resize(column.expand(-1, -1, 2), [size[0], 2], antialias=True)[..., :1]


def augment_reference(
    images: Tensor,
    table: Tensor | None,
    params: Tensor,
    channels: int,
    out_height: int,
    out_width: int,
    mean: list[float],
    std: list[float],
    blur_kernel: int,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Every view of every image, [views * B, C, out_height, out_width]; arguments as for simclr_fast::augment."""
    fields = {name: value.tolist() for name, value in vars(AugmentParams.unpack(params)).items()}
    views, batch = params.shape[:2]
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty(
        (views * batch, channels, out_height, out_width), dtype=dtype, device=images.device, memory_format=memory_format
    )
    shift = torch.tensor(mean, device=images.device)[:, None, None]
    scale = torch.tensor(std, device=images.device)[:, None, None]
    for sample in range(batch):
        image = images[sample] if table is None else ragged_image(images, table[sample].tolist(), channels)
        for view in range(views):
            p = {name: value[view][sample] for name, value in fields.items()}
            x = augment_one(image, p, out_height, out_width, blur_kernel)
            out[view * batch + sample] = (x - shift) / scale
    return out


def ragged_image(flat: Tensor, row: list[int], channels: int) -> Tensor:
    """The image [C, H, W] that a row of the ragged table describes in the flat tensor of all images."""
    offset, height, width, *strides = row
    return flat.as_strided((channels, height, width), strides, offset)
