"""Host side of the Triton augmentation: buffers and launches; nothing here waits for the device.

`augment` and `augment_sample` take the arguments of the ops of that name (ops.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from simclr_fast.ops.augment.params import PACKED_WORDS, RAGGED_COLUMNS, AugmentRecipe
from simclr_fast.ops.augment.triton_kernels import augment_mean_kernel, augment_tile_kernel, augment_whole_kernel
from simclr_fast.ops.augment.triton_sample import augment_sample_kernel
from simclr_fast.triton_launch import Launch, launch_on_device

# Output pixels a side of a view that one program holds, and of what a program of a larger output computes. Three
# channels of 64 x 64 leave 48 floats to each of 256 threads, in kernels of up to 229 registers; 128 x 128 would spill.
LARGEST_WHOLE = REGION = 64
# The same where the blur's halo takes several regions, whose sums are held beside the region itself.
REGION_OF_MANY = 32
SECTOR_BYTES = 32  # what device memory is read by
SAMPLE_BLOCK = 64  # views whose parameters a program draws: 256 samples in two views are eight programs
SUMS_BLOCK = 32  # tiles' sums that a program adds up at a time: the mean of 224 x 224 has 16
_IN_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
_OUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_RECIPE_NUMBERS = len(AugmentRecipe._fields)


def owned(length: int, radius: int, region: int) -> int:
    """How many outputs along an axis a program owns (_owned of the kernels)."""
    if radius == 0 or length <= region or radius > region // 4:
        return region
    return (region - 2 * radius) // 8 * 8


def most_programs(length: int, half: int, region: int) -> int:
    """Programs along an axis for the radius, of 0..half, that needs most."""
    return triton.cdiv(length, owned(length, min(half, region // 4), region))


@dataclass(frozen=True)
class TritonAugment:
    """The backend's two functions, for a way to run a launch."""

    run: Callable[[Launch], None] = launch_on_device

    def augment(
        self,
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
        """Every view of every image: simclr_fast::augment."""
        params = params.contiguous()
        _check_augment(images, table, params, channels, out_height, out_width, mean, std, blur_kernel, dtype)
        views, batch = params.shape[:2]
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        shape = (views * batch, channels, out_height, out_width)
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)
        if views * batch == 0:
            return out

        shared = {"images": images, "offset": None, "table": table, "packed": params, "views": views, "batch": batch}
        shared |= {"out_height": out_height, "out_width": out_width}
        shared |= {"unit": 1.0 / 255.0 if images.dtype == torch.uint8 else 1.0}
        constants: dict[str, Any] = {"CHANNELS": channels, "SECTOR": SECTOR_BYTES // images.element_size()}
        vectors = table is None and _loads_vectors(images)
        if table is None:
            if not vectors:
                shared |= dict(zip(("images", "offset"), _split_address(images)))
            sizes = dict(zip(("height", "width"), images.shape[2:]))
            strides = dict(zip(("stride_b", "stride_c", "stride_h", "stride_w"), images.stride()))
            constants |= {"INTERLEAVED": channels == 3 and strides["stride_c"] == 1 and strides["stride_w"] == 3}
            shared |= sizes | strides
        else:
            shared |= dict.fromkeys(("height", "width", "stride_b", "stride_c", "stride_h", "stride_w"), 0)
            constants |= {"INTERLEAVED": False if channels == 1 else None}
        half = blur_kernel // 2
        values = {"blur_half": half}
        for c in range(3):
            scale, shift = (1.0 / std[c], -mean[c] / std[c]) if c < channels else (1.0, 0.0)
            values |= {f"scale{c}": scale, f"shift{c}": shift}

        # Elements of a source row in a chunk. A longer chunk would take more registers than the region's pixels do;
        # elements that are loaded one by one take an address each, and spill with 64.
        most = 64 if vectors else 32
        if max(out_height, out_width) <= LARGEST_WHOLE:
            blocks = _blocks(out_height, out_width, LARGEST_WHOLE, most)
            arguments = shared | values | {"out": out}
            whole = constants | blocks | {"CHANNELS_LAST": channels_last}
            self.run(Launch.of(augment_whole_kernel, (views * batch,), arguments, whole, num_warps=_warps(blocks)))
            return out

        blocks = _blocks(out_height, out_width, REGION, most)
        tiles_x = triton.cdiv(out_width, blocks["COLUMNS"])
        mean_programs = triton.cdiv(out_height, blocks["ROWS"]) * tiles_x
        sums = torch.empty((views * batch, mean_programs), dtype=torch.float32, device=images.device)
        arguments = shared | {"sums": sums, "programs": mean_programs, "tiles_x": tiles_x}
        grid = (views * batch * mean_programs,)
        self.run(Launch.of(augment_mean_kernel, grid, arguments, constants | blocks, num_warps=_warps(blocks)))

        sides = {out_height: blocks["ROWS"], out_width: blocks["COLUMNS"]}
        many = any(half > side // 4 and length > side for length, side in sides.items())
        if many:
            blocks = _blocks(out_height, out_width, REGION_OF_MANY, most)
        programs = most_programs(out_height, half, blocks["ROWS"]) * most_programs(out_width, half, blocks["COLUMNS"])
        arguments = shared | values | {"sums": sums, "out": out, "programs": programs, "mean_programs": mean_programs}
        tile = constants | blocks | {"CHANNELS_LAST": channels_last, "MANY": many, "BLOCK_SUMS": SUMS_BLOCK}
        # Of the loops over regions ptxas would rather spill than give a thread more than 128 registers.
        how = {"num_warps": 8, "maxnreg": 255} if many else {"num_warps": _warps(blocks)}
        grid = (views * batch * programs,)
        self.run(Launch.of(augment_tile_kernel, grid, arguments, tile, **how))
        return out

    def augment_sample(
        self,
        seed: Tensor,
        indices: Tensor | None,
        table: Tensor | None,
        height: int,
        width: int,
        batch: int,
        views: int,
        recipe: list[float],
    ) -> Tensor:
        """Packed parameters int32 [views, batch, 16]: simclr_fast::augment_sample."""
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"augment_sample: seed is {seed.dtype} {tuple(seed.shape)}, must be int64 [1]")
        if len(recipe) != _RECIPE_NUMBERS:
            raise ValueError(f"augment_sample: recipe has {len(recipe)} numbers, must have {_RECIPE_NUMBERS}")
        if indices is not None and (indices.dtype != torch.int64 or indices.numel() != batch):
            raise ValueError(f"augment_sample: indices is {indices.dtype} {tuple(indices.shape)}, not int64 [{batch}]")
        if table is not None:
            _check_table(table, batch)
        elif batch > 0 and min(height, width) < 1:
            raise ValueError(f"augment_sample: images of {height} x {width} have no pixels")
        params = torch.empty((views, batch, PACKED_WORDS), dtype=torch.int32, device=seed.device)
        count = views * batch
        if count == 0:
            return params
        arguments = {"seed": seed, "indices": None if indices is None else indices.contiguous(), "table": table}
        arguments |= {"packed": params, "height": height, "width": width, "batch": batch, "count": count}
        constants = {"RECIPE": tuple(recipe), "BLOCK": SAMPLE_BLOCK}
        grid = (triton.cdiv(count, SAMPLE_BLOCK),)
        self.run(Launch.of(augment_sample_kernel, grid, arguments, constants, num_warps=2, enable_fp_fusion=False))
        return params


def _side(length: int, most: int) -> int:
    """The power of two, of 16..most, that holds `length` if any does."""
    return min(max(16, triton.next_power_of_2(length)), most)


def _loads_vectors(images: Tensor) -> bool:
    """Whether every row of every image starts at 16 bytes, so that a lane loads several neighbouring elements."""
    *outer, stride_c, stride_h, stride_w = images.stride()
    interleaved = (stride_c, stride_w) == (1, 3)
    rows = (*outer, stride_h) if interleaved else (*outer, stride_h, stride_c)
    contiguous = interleaved or stride_w == 1
    return contiguous and images.data_ptr() % 16 == 0 and all(stride % 16 == 0 for stride in rows)


def _split_address(images: Tensor) -> tuple[Tensor, int]:
    """A tensor that starts at 16 bytes, and how many elements behind it the images start.

    So that of images whose rows start anywhere, every slice runs through the same compiled kernel.
    """
    offset = images.data_ptr() % 16 // images.element_size()
    if offset == 0 or offset > images.storage_offset():  # the whole storage may start anywhere
        return images, 0
    return images.as_strided((1,), (1,), images.storage_offset() - offset), offset


def _blocks(height: int, width: int, region: int, most: int) -> dict[str, int]:
    """Pixels of a program's region, at most `region` a side; elements of a source row in a chunk, at most `most`."""
    rows, columns = _side(height, region), _side(width, region)
    return {"ROWS": rows, "COLUMNS": columns, "K": min(max(32, columns), most)}


def _warps(blocks: dict[str, int]) -> int:
    """Eight above 1024 pixels: with four, a thread would hold 96 floats of a 64 x 64 region and spill."""
    return 8 if blocks["ROWS"] * max(blocks["COLUMNS"], blocks["K"]) > 1024 else 4


def _check_table(table: Tensor, batch: int) -> None:
    if table.dtype != torch.int64 or table.shape != (batch, len(RAGGED_COLUMNS)) or not table.is_contiguous():
        raise ValueError(
            f"augment: table is {table.dtype} {tuple(table.shape)}, "
            f"must be contiguous int64 [{batch}, {len(RAGGED_COLUMNS)}]"
        )


def _check_augment(
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
) -> None:
    if params.dtype != torch.int32 or params.dim() != 3 or params.shape[2] != PACKED_WORDS:
        raise ValueError(f"augment: params is {params.dtype} {tuple(params.shape)}, must be int32 [views, batch, 16]")
    if params.device != images.device:
        raise ValueError(f"augment: params are on {params.device}, images on {images.device}")
    batch = params.shape[1]
    if images.dtype not in _IN_DTYPES or dtype not in _OUT_DTYPES:
        raise TypeError(f"augment: images of {images.dtype} to {dtype} are not served")
    if channels not in (1, 3) or len(mean) != channels or len(std) != channels:
        raise ValueError(f"augment: {channels} channels (1 or 3 are served), {len(mean)} means, {len(std)} stds")
    if min(out_height, out_width) < 1:
        raise ValueError(f"augment: an output of {out_height} x {out_width} has no pixels")
    if blur_kernel < 1 or blur_kernel % 2 == 0 or blur_kernel // 2 >= min(out_height, out_width):
        raise ValueError(
            f"augment: blur_kernel={blur_kernel} must be odd, with half of it less than the output's sides "
            f"({out_height} x {out_width})"
        )
    if table is not None:
        _check_table(table, batch)
    elif images.dim() != 4 or images.shape[:2] != (batch, channels) or min(images.shape[2:]) < 1:
        raise ValueError(f"augment: images are {tuple(images.shape)}, must be [{batch}, {channels}, height, width]")


_default = TritonAugment()
augment, augment_sample = _default.augment, _default.augment_sample
