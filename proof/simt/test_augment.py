"""The CUDA augmentation, executed on the CPU, against torchvision's functionals applied per sample."""

import ctypes
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from proof.simt import augment as simt
from proof.simt.library import SCHEDULES, Kernels, Schedule, SimtError, unwritten
from simclr_fast.augmentation import SimCLRAugment
from simclr_fast.ops.augment import ORDERS, AugmentParams, ImageBatch
from simclr_fast.ops.augment.params import PACKED_WORDS
from simclr_fast.ops.augment.reference import augment_reference
from tests.helpers import IMAGE_STRIDES, spread
from tests.ops.augment.compare import NAN_OPERATIONS, nan_views
from tests.ops.augment.means import MEANS, errors_of_the_mean, views_that_lost_the_mean

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NO_COPIES = SCHEDULES[::2]  # the kernels copy nothing asynchronously
FLAGS = ("hflip", "jitter", "gray", "blur", "solarize")
# (height, width) of an output that one block holds, and of one that is cut into tiles.
BOTH_PATHS = pytest.mark.parametrize("size", [(40, 43), (100, 42)], ids=["whole", "tiles"])


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return Kernels(simt.SOURCES)


def images_of(batch: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    images = torch.randint(0, 256, (batch, channels, height, width), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def drawn(images: Tensor | list[Tensor], size: int | tuple[int, int], blur_kernel: int, **options) -> AugmentParams:
    options = {"blur_p": 0.7, "solarize_p": 0.3, "solarize_threshold": 0.4} | options
    return SimCLRAugment(size, blur_kernel=blur_kernel, backend="reference", **options).sample(images)


def uniform_params(count: int, height: int, width: int, **fields: Tensor | float | int) -> AugmentParams:
    """One view of `count` samples that keeps the whole image and changes nothing, but for the given fields."""
    names = AugmentParams.__dataclass_fields__
    floats = ("brightness", "contrast", "saturation", "hue", "sigma", "solarize_threshold")
    defaults = dict.fromkeys(names, 0) | {"height": height, "width": width, "sigma": 1.0, "solarize_threshold": 0.5}
    defaults |= {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
    values = {}
    for name in names:
        dtype = torch.bool if name in FLAGS else torch.float32 if name in floats else torch.int32
        values[name] = torch.as_tensor(fields.get(name, defaults[name]), dtype=dtype).expand(1, count).contiguous()
    return AugmentParams(**values)


def assert_matches(
    kernels: Kernels,
    images: Tensor | list[Tensor],
    params: AugmentParams,
    size: tuple[int, int],
    blur_kernel: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    schedule: Schedule = simt.IN_ORDER,
) -> Tensor:
    batch, packed = ImageBatch.of(images), params.pack()
    truth = augment_reference(
        *(batch.data, batch.table, packed, batch.channels, *size),
        *([0.0] * batch.channels, [1.0] * batch.channels, blur_kernel, torch.float32, False),
    )
    out = simt.augment(kernels, batch, packed, size, blur_kernel, dtype, channels_last, schedule)
    error = (out.float() - truth).abs().flatten(1).amax(dim=1)
    assert not out.isnan().any(), "pixels were left unwritten"
    assert error.max() <= TOLERANCE[dtype], f"errors per view: {error.tolist()}"
    return out


def test_the_structs_are_those_of_the_kernels(kernels: Kernels) -> None:
    for which, struct in enumerate(simt.STRUCTS):
        assert ctypes.sizeof(struct) == kernels.value("augment_struct_bytes", which)


@pytest.mark.parametrize("schedule", NO_COPIES, ids=str)
@pytest.mark.parametrize(
    ("shape", "size", "blur_kernel"),
    [
        ((3, 32, 32), (32, 32), 3),
        ((3, 37, 52), (33, 18), 5),
        ((1, 20, 15), (24, 24), 3),
        ((3, 1, 1), (7, 5), 3),
        ((3, 9, 300), (1, 1), 1),
        ((3, 70, 64), (96, 96), 9),
    ],
    ids=str,
)
def test_one_block_per_view(
    kernels: Kernels, shape: tuple[int, int, int], size: tuple[int, int], blur_kernel: int, schedule: Schedule
) -> None:
    images = images_of(4, *shape)
    device = replace(schedule, shared_bytes=160 * 1024)
    assert_matches(kernels, images, drawn(images, size, blur_kernel), size, blur_kernel, schedule=device)


@pytest.mark.parametrize("schedule", NO_COPIES, ids=str)
@pytest.mark.parametrize(
    ("shape", "size", "blur_kernel"),
    [((3, 60, 80), (100, 131), 11), ((1, 230, 90), (97, 20), 31), ((3, 500, 333), (98, 98), 1)],
    ids=str,
)
def test_tiles(
    kernels: Kernels, shape: tuple[int, int, int], size: tuple[int, int], blur_kernel: int, schedule: Schedule
) -> None:
    images = images_of(2, *shape)
    params = drawn(images, size, blur_kernel, blur_sigma=(0.3, 4.0))
    assert_matches(kernels, images, params, size, blur_kernel, schedule=schedule)


def test_the_paper_s_recipe_at_224(kernels: Kernels) -> None:
    images = images_of(1, 3, 256, 256)
    assert_matches(kernels, images, drawn(images, 224, 23, blur_p=1.0), (224, 224), 23, channels_last=True)


@BOTH_PATHS
def test_every_order_of_the_jitter(kernels: Kernels, size: tuple[int, int]) -> None:
    images, count = images_of(1, 3, 30, 41), len(ORDERS)
    spread = torch.linspace(0.2, 1.8, count)
    params = uniform_params(
        *(count, 30, 41),
        **{"jitter": True, "order": torch.arange(count), "hue": torch.linspace(-0.5, 0.5, count)},
        **{"brightness": spread, "contrast": spread.flip(0), "saturation": spread.roll(7)},
    )
    assert_matches(kernels, images.expand(count, -1, -1, -1), params, size)


@pytest.mark.parametrize("schedule", NO_COPIES, ids=str)
@pytest.mark.parametrize("case", MEANS)
def test_the_mean_where_contrast_comes_first(kernels: Kernels, case: str, schedule: Schedule) -> None:
    augment = partial(simt.augment, kernels, schedule=schedule)
    error, of_reference = errors_of_the_mean(case, augment)
    assert error <= 2 * of_reference + 1e-7


def test_a_nan_pixel_of_the_crop_makes_the_mean_nan(kernels: Kernels) -> None:
    assert views_that_lost_the_mean(partial(simt.augment, kernels)) == [False, True, True, False]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("channels", [1, 3])
@BOTH_PATHS
def test_each_operation_alone(kernels: Kernels, flag: str, channels: int, size: tuple[int, int]) -> None:
    images = images_of(2, channels, 45, 38)
    factors = {"brightness": 1.4, "contrast": 0.3, "saturation": 1.7, "hue": -0.2, "sigma": torch.tensor([0.4, 1.9])}
    params = uniform_params(2, 45, 38, **({flag: True} | factors))
    assert_matches(kernels, images, params, size, 9)


@pytest.mark.parametrize("strides", IMAGE_STRIDES, ids=str)
def test_images_of_large_strides(kernels: Kernels, strides: tuple[int, ...]) -> None:
    images = images_of(2, 3, 20, 24)
    assert_matches(kernels, spread(images, strides), drawn(images, 12, 3), (12, 12), 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", NAN_OPERATIONS)
def test_nan_pixels_stay_nan(kernels: Kernels, operation: str, channels: int) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        images, transform, params = nan_views(operation, channels, dtype)
        lost = transform("reference").apply(images, params).isnan()
        out = simt.augment(kernels, ImageBatch.of(images), params.pack(), (12, 12), 3, dtype, True, simt.IN_ORDER)
        assert out.isnan()[lost].all()
        assert operation == "contrast" or not out.isnan().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["planar", "interleaved", "strided", "offset", "expanded"])
def test_source_types_and_layouts(kernels: Kernels, dtype: torch.dtype, layout: str) -> None:
    images = images_of(3, 3, 27, 31, dtype)
    if layout == "interleaved":
        images = images.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":  # no two neighbours of any axis adjacent
        images = images_of(3, 6, 54, 62, dtype)[:, ::2, ::2, ::2]
    elif layout == "offset":  # rows that start at every alignment
        images = images_of(3, 3, 30, 35, dtype)[:, :, 1:28, 3:34]
    elif layout == "expanded":
        images = images[:1].expand(3, -1, -1, -1)
    assert_matches(kernels, images, drawn(images, 24, 3), (24, 24), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "channels_last"])
@pytest.mark.parametrize("width", [36, 37])
def test_output_types_and_layouts(kernels: Kernels, dtype: torch.dtype, channels_last: bool, width: int) -> None:
    for channels in (1, 3):
        images = images_of(2, channels, 40, 40)
        params = drawn(images, (30, width), 3)
        assert_matches(kernels, images, params, (30, width), 3, dtype, channels_last)


def test_normalises(kernels: Kernels) -> None:
    images = images_of(2, 3, 16, 16)
    batch, packed = ImageBatch.of(images), drawn(images, 16, 1).pack()
    plain = simt.augment(kernels, batch, packed, (16, 16))
    out = simt.unwritten_views(tuple(plain.shape), torch.float32, False)
    args = simt.augment_args(batch, packed, out, 1, scale=(2.0, 3.0, 4.0), shift=(0.5, -0.5, 1.0))
    kernels.call("augment", ctypes.byref(args), None)
    expected = plain * torch.tensor([2.0, 3.0, 4.0])[:, None, None] + torch.tensor([0.5, -0.5, 1.0])[:, None, None]
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [20, 100])
def test_ragged_images(kernels: Kernels, size: int) -> None:
    images = [images_of(1, 3, *shape)[0] for shape in ((1, 1), (200, 3), (17, 410), (64, 50))]
    images[3] = images[3].contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert_matches(kernels, images, drawn(images, size, 3), (size, size), 3)


def test_a_row_longer_than_the_staging_area(kernels: Kernels) -> None:
    """4 x 3000 float pixels: the horizontal sums of one output pixel span many chunks."""
    for images in (images_of(2, 3, 4, 3000, torch.float32), images_of(2, 1, 3000, 4)):
        params = uniform_params(2, *images.shape[2:], hflip=torch.tensor([False, True]))
        assert_matches(kernels, images, params, (3, 2))


def test_the_test_time_transform(kernels: Kernels) -> None:
    """Resize the shorter side to `resize`, then take the centre."""
    for height, width, size, resize in ((50, 61, 32, 40), (90, 33, 100, 120)):
        full = [int(resize * side / min(height, width)) for side in (height, width)]
        shift = [round((side - size) / 2) for side in full]
        window = {"resize_height": full[0], "resize_width": full[1], "shift_y": shift[0], "shift_x": shift[1]}
        images = images_of(2, 3, height, width)
        assert_matches(kernels, images, uniform_params(2, height, width, **window), (size, size))


@BOTH_PATHS
def test_results_do_not_depend_on_the_schedule(kernels: Kernels, size: tuple[int, int]) -> None:
    images = images_of(2, 3, 60, 60)
    batch, packed = ImageBatch.of(images), drawn(images, size, 5, jitter_p=1.0).pack()
    first, *others = (simt.augment(kernels, batch, packed, size, 5, schedule=schedule) for schedule in NO_COPIES)
    assert all(torch.equal(other, first) for other in others)


@BOTH_PATHS
def test_wild_parameters_stay_inside_the_image(kernels: Kernels, size: tuple[int, int]) -> None:
    """Nothing checks parameters on a GPU: any bits must be safe (the sanitizers watch this one)."""
    images = images_of(16, 3, 13, 17)
    packed = torch.randint(-(2**31), 2**31 - 1, (2, 16, PACKED_WORDS), dtype=torch.int32)
    packed[..., 12:] = torch.randint(-50, 50, (2, 16, 4), dtype=torch.int32)
    simt.augment(kernels, ImageBatch.of(images), packed, size, 9)
    not_numbers = dict.fromkeys(("brightness", "contrast", "hue", "sigma"), math.nan)
    params = uniform_params(16, 13, 17, jitter=True, blur=True, solarize=True, **not_numbers)
    simt.augment(kernels, ImageBatch.of(images), params.pack(), size, 9)


def launches(kernels: Kernels, images: Tensor, size: tuple[int, int], blur_kernel: int, shared_bytes: int) -> int:
    out = torch.empty(images.shape[0], images.shape[1], *size)
    packed = uniform_params(images.shape[0], *images.shape[2:]).pack()
    args = simt.augment_args(ImageBatch.of(images), packed, out, blur_kernel)
    return kernels.value("augment_plans", ctypes.byref(args), shared_bytes, ctypes.byref(simt.AugmentPlans()))


@pytest.mark.parametrize("shared_bytes", [99 * 1024, 163 * 1024, 227 * 1024], ids=["sm_86", "sm_80", "sm_90"])
def test_launches_and_shared_memory(kernels: Kernels, shared_bytes: int) -> None:
    images = images_of(1, 3, 256, 256)
    for size in (1, 32, 64):
        assert launches(kernels, images, (size, size), int(0.1 * size) | 1, shared_bytes) == 1
    assert launches(kernels, images, (96, 96), 9, shared_bytes) == (1 if shared_bytes > 160 * 1024 else 2)
    for size in (97, 224, 512):
        assert launches(kernels, images, (size, size), int(0.1 * size) | 1, shared_bytes) == 2
    assert launches(kernels, images, (1000, 1000), 61, shared_bytes) == 2


def test_a_blur_too_large_for_the_device_is_refused(kernels: Kernels) -> None:
    images = images_of(1, 3, 20, 20)
    with pytest.raises(SimtError, match="returned -1"):
        simt.augment(kernels, ImageBatch.of(images), uniform_params(1, 20, 20).pack(), (300, 300), 301)


@pytest.mark.parametrize("schedule", NO_COPIES, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_sampling_draws_what_the_reference_draws(kernels: Kernels, ragged: bool, schedule: Schedule) -> None:
    count, views = 67, 3
    images = [images_of(1, 3, 5 + k, 90 - k)[0] for k in range(count)] if ragged else images_of(count, 3, 33, 48)
    batch = ImageBatch.of(images)
    aug = SimCLRAugment(32, views=views, solarize_p=0.4, scale=(0.2, 1.0), backend="reference")
    indices, seed = torch.randint(0, 2**40, (count,)), torch.tensor([0x1234_5678_9ABC_DEF])
    for chosen in (None, indices):
        expected = aug.sample(images, indices=chosen, seed=seed).pack()
        params = unwritten(views, count, PACKED_WORDS, dtype=torch.int32)
        args = simt.AugmentSampleArgs(
            *(simt.recipe_doubles(aug), seed.data_ptr()),
            *(pointer(chosen), pointer(batch.table), *batch.size, views, count, params.data_ptr()),
        )
        kernels.call("augment_sample", ctypes.byref(args), schedule=schedule)
        assert torch.equal(params, expected)


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
