"""A batch of images as the kernels take it: one strided tensor, or a flat tensor with a table for ragged images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class ImageBatch:
    """Images of one size (table is None, data [B, C, H, W] with any strides) or ragged.

    Ragged: data is flat, and table is int64 [B, 6] with the columns offset, height, width and the strides of C, H, W,
    in elements. sizes holds (height, width) of every image, once where all have the same, known on the host: numbers
    that torch.compile may keep symbolic, as it may the number of images.
    """

    data: Tensor
    table: Tensor | None
    channels: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def batch_size(self) -> int:
        """Images."""
        return self.data.shape[0] if self.table is None else self.table.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that the ops take: of every image, or (0, 0) where the table has them."""
        return self.sizes[0] if self.table is None else (0, 0)

    @staticmethod
    def of(images: "Tensor | Sequence[Tensor]") -> "ImageBatch":
        """Checks images ([B, C, H, W], or a list of [C, H, W]), detaches them, and concatenates a list."""
        if isinstance(images, Tensor):
            _check_image(images, "images", 4)
            channels, height, width = images.shape[1:]
            return ImageBatch(images.detach(), None, channels, ((height, width),))
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise TypeError(f"images is a {type(images).__name__}; pass a tensor [B, C, H, W] or a list of [C, H, W]")
        if not images:
            raise ValueError("images is an empty list; pass at least one image")
        for k, image in enumerate(images):
            _check_image(image, f"images[{k}]", 3)
            for what in ("dtype", "device"):
                if getattr(image, what) != getattr(images[0], what):
                    raise TypeError(
                        f"images[{k}].{what} is {getattr(image, what)}, images[0].{what} is "
                        f"{getattr(images[0], what)}; convert them to one {what}"
                    )
            if image.shape[0] != images[0].shape[0]:
                raise ValueError(
                    f"images[{k}] has {image.shape[0]} channels, images[0] has {images[0].shape[0]}; "
                    "all images need the same number"
                )
        return _ragged(images)


def _check_image(image: Tensor, name: str, dims: int) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} is a {type(image).__name__}; pass a torch.Tensor (torch.from_numpy for arrays)")
    layout = "[B, C, H, W]" if dims == 4 else "[C, H, W]"
    if image.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(image.shape)}; pass {layout}")
    if image.dtype not in _DTYPES:
        raise TypeError(f"{name} has dtype {image.dtype}; pass uint8, or float16, bfloat16 or float32 in [0, 1]")
    channels, height, width = image.shape[-3:]
    if channels not in (1, 3):
        hint = "; permute channels-last arrays to it" if image.shape[-1] in (1, 3) else ""
        raise ValueError(f"{name} has {channels} channels, 1 or 3 are served; its shape is read as {layout}{hint}")
    if height < 1 or width < 1:
        raise ValueError(f"{name} has shape {tuple(image.shape)}: height and width must be at least 1")


def _ragged(images: Sequence[Tensor]) -> ImageBatch:
    """One flat tensor (a copy of each image's own bytes, planar or channels-last as it is) and its table."""
    flat, rows, offset = [], [], 0
    for image in images:
        channels, height, width = image.shape
        channels_last = image.permute(1, 2, 0)
        if channels_last.is_contiguous():
            flat.append(channels_last.reshape(-1))
            strides = (1, width * channels, channels)
        else:
            flat.append(image.reshape(-1))
            strides = (height * width, width, 1)
        rows.append((offset, height, width, *strides))
        offset += image.numel()
    table = torch.tensor(rows, dtype=torch.int64, device="cpu")  # whatever the default device is
    if images[0].is_cuda:
        table = table.pin_memory().to(images[0].device, non_blocking=True)
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    return ImageBatch(torch.cat(flat).detach(), table, images[0].shape[0], sizes)
