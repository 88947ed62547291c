"""The Triton augmentation in Triton's interpreter: equal to torchvision per sample, and drawing the same bits.

Outputs are small: the interpreter takes about a tenth of a second for a region of pixels.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simclr_fast import SimCLRAugment, SimCLREval
from simclr_fast.ops.augment import ImageBatch, ops
from simclr_fast.ops.augment.params import pack_window
from simclr_fast.ops.augment.triton_backend import Launch, TritonAugment, launch_on_device
from tests.ops.augment.compare import NAN_OPERATIONS, TOLERANCE, nan_views, noise, only
from tests.ops.augment.means import MEANS, errors_of_the_mean, views_that_lost_the_mean
from tests.ops.augment.triton_cases import FULL, NEUTRAL, alone, drawn, error, views_of, views_of_batch

pytestmark = pytest.mark.interpret

TRITON = TritonAugment()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", ["none", "hflip", *NEUTRAL, "gray", "blur", "solarize"])
def test_each_operation_alone(operation: str, channels: int) -> None:
    images = noise(2, channels, 25, 22)
    params = drawn(images, (17, 14), views=1)
    assert error(TRITON, images, (17, 14), alone(params, operation), blur_kernel=9) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", NAN_OPERATIONS)
def test_nan_pixels_stay_nan(operation: str, channels: int, dtype: torch.dtype) -> None:
    images, transform, params = nan_views(operation, channels, dtype)
    lost = transform("reference").apply(images, params).isnan()
    assert views_of(TRITON, images, 12, params, 3, dtype).isnan()[lost].all()


def test_whole_chain_in_all_orders() -> None:
    images = noise(24, 3, 21, 17)
    params = only(drawn(images, 12, views=1, seed=2), "hflip", "jitter", "blur", "solarize")
    params = replace(params, order=torch.arange(24, dtype=torch.int32).expand(1, 24))
    assert error(TRITON, images, 12, params, blur_kernel=5) <= 1


def test_parameters_that_leave_the_image_are_brought_inside() -> None:
    """Nothing checks them on a GPU. Where they end is what the C++ kernels make of them."""
    images, last = noise(6, 3, 20, 26), 2**31 - 1
    params = only(drawn(images, (12, 9), views=1, seed=3), "jitter")
    wild = {"top": [15, 0, -7, last, 0, 3], "left": [20, last, 0, -9, 1, 0], "height": [9, 8, 0, -1, last, 7]}
    wild |= {"width": [10, 7, 11, 30, 12, -3], "order": [24, last, -1, 3, -last, 0], "shift_y": [5, 0, -4, last, 2, 0]}
    wild |= {"shift_x": [0, 3, last, -2, 1, 0], "resize_height": [0, 14, 15, 13, -5, 0]}
    wild |= {"resize_width": [0, 11, 9, 2, 0, -1]}
    params = replace(params, **{name: torch.tensor([values], dtype=torch.int32) for name, values in wild.items()})
    packed, batch = params.pack(), ImageBatch.of(images)
    expected = torch.ops.simclr_fast.augment(
        batch.data, batch.table, packed, 3, 12, 9, [0.0] * 3, [1.0] * 3, 1, torch.float32, True
    )
    assert (views_of(TRITON, images, (12, 9), packed) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (5, 4), (16, 16), (90, 31), (20, 133)])
def test_sizes(shape: tuple[int, int]) -> None:
    """From far smaller to far larger than the output, several chunks wide."""
    images = noise(1, 3, *shape)
    params = drawn(images, 15, seed=3, **FULL)
    assert error(TRITON, images, 15, params, blur_kernel=3) <= 1
    whole = {"top": 0, "left": 0, "height": shape[0], "width": shape[1]}
    params = replace(params, **{name: torch.full_like(params.top, value) for name, value in whole.items()})
    assert error(TRITON, images, 15, params, blur_kernel=3) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 20), (3, 2), (17, 33), (64, 9)])
def test_output_shapes(size: tuple[int, int]) -> None:
    images = noise(2, 3, 20, 25)
    assert error(TRITON, images, size, drawn(images, size, views=1, seed=4, blur_kernel=1, **FULL)) <= 1


def layouts() -> dict:
    planar = noise(3, 3, 20, 25)
    wide = noise(3, 3, 40, 75)
    return {
        "channels-last": planar.contiguous(memory_format=torch.channels_last),
        "a crop of larger images": wide[:, :, 10:30, 15:40],
        "a crop of larger channels-last images": wide.contiguous(memory_format=torch.channels_last)[..., 10:30, 15:40],
        "every second pixel": wide[:, :, ::2, ::3],
        "rgb of rgba": noise(3, 20, 25, 4).permute(0, 3, 1, 2)[:, :3],
        "transposed": noise(3, 3, 25, 20).transpose(2, 3),
        "one image for all": planar[:1].expand(3, -1, -1, -1),
        "float32": planar.float() / 255,
        "float32 channels-last": (planar.float() / 255).contiguous(memory_format=torch.channels_last),
        "float16": (planar.float() / 255).half(),
        "bfloat16": (planar.float() / 255).bfloat16(),
        "gray": planar[:, :1],
        "ragged": [noise(3, 20, 25), noise(3, 1, 1), noise(15, 49, 3).permute(2, 0, 1)],
        "ragged float16": [
            (image.float() / 255).half() for image in (noise(3, 20, 25), noise(30, 10, 3).movedim(2, 0))
        ],
        "ragged gray": [noise(1, 14, 14), noise(1, 20, 10)],
    }


@pytest.mark.parametrize("layout", layouts())
def test_input_layouts_and_types(layout: str) -> None:
    images = layouts()[layout]
    assert error(TRITON, images, 16, drawn(images, 16, views=1, seed=5, **FULL), blur_kernel=3) <= 1


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_and_layouts(channels: int, dtype: torch.dtype, channels_last: bool) -> None:
    images = noise(2, channels, 20, 25)
    params = drawn(images, 19, views=1, seed=6, **FULL)
    assert error(TRITON, images, 19, params, 3, dtype, channels_last) <= 1


def test_normalisation() -> None:
    images = noise(2, 3, 20, 25)
    params = drawn(images, 16, views=1, seed=7, **FULL)
    plain = views_of(TRITON, images, 16, params, 3)
    normalised = views_of(TRITON, images, 16, params, 3, mean=0.4, std=0.2)
    assert (normalised - (plain - 0.4) / 0.2).abs().max() <= TOLERANCE


def test_per_channel_normalisation_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public transform, whose op is the Triton one here: the draws, eight views, mean and std per channel."""
    monkeypatch.setattr(ops, "resolve_backend", lambda backend, op, *_: "triton" if backend == "auto" else backend)
    monkeypatch.setitem(ops._OPS, ("triton", "augment"), TRITON.augment)
    monkeypatch.setitem(ops._OPS, ("triton", "augment_sample"), TRITON.augment_sample)
    images, recipe = noise(2, 3, 20, 25), {"views": 8, "solarize_p": 0.2}
    ours, truth = (SimCLRAugment(16, **recipe, backend=backend)(images, seed=3) for backend in ("auto", "reference"))
    assert ours.shape == truth.shape
    assert (ours - truth).abs().max() <= TOLERANCE / 0.2


@pytest.mark.parametrize(
    ("shape", "resize"), [((3, 40, 50), 24), ((1, 28, 28), 19), ((3, 1, 3), 17), ((3, 90, 31), 16)]
)
def test_eval_window(shape: tuple[int, int, int], resize: int) -> None:
    images = noise(2, *shape)
    aug = SimCLREval(16, resize=resize)
    window = torch.tensor([aug._window(*shape[1:])], dtype=torch.int32).expand(2, -1)[None]
    truth = SimCLREval(16, resize=resize, mean=0.0, std=1.0, backend="reference")(images)
    assert (views_of(TRITON, images, 16, window) - truth).abs().max() <= TOLERANCE


def recorded(launches: list[Launch]) -> TritonAugment:
    def run(launch: Launch) -> None:
        launches.append(launch)
        launch_on_device(launch)

    return TritonAugment(run)


@pytest.mark.parametrize("size", [(66, 70), (20, 130)])  # 130: a tile with halos on both sides
def test_large_outputs_take_two_launches(size: tuple[int, int]) -> None:
    """Tiles, their halos and surplus programs; contrast around the mean of all tiles."""
    images, launches = noise(2, 3, 40, 50), []
    params = drawn(images, size, views=1, seed=8, hflip=0.5, blur_kernel=15, jitter_p=1.0)
    params = replace(params, blur=torch.tensor([[True, False]]), sigma=torch.full_like(params.sigma, 2.0))
    assert error(recorded(launches), images, size, params, blur_kernel=15) <= 1
    assert [launch.kernel.__name__ for launch in launches] == ["augment_mean_kernel", "augment_tile_kernel"]
    assert not launches[1].constants["MANY"]


@pytest.mark.parametrize("case", MEANS)
def test_the_mean_where_contrast_comes_first(case: str) -> None:
    error, of_reference = errors_of_the_mean(case, partial(views_of_batch, TRITON))
    assert error <= 2 * of_reference + 1e-7


def test_a_nan_pixel_of_the_crop_makes_the_mean_nan() -> None:
    assert views_that_lost_the_mean(partial(views_of_batch, TRITON)) == [False, True, True, False]


def test_small_outputs_take_one_launch() -> None:
    images, launches = noise(1, 3, 20, 25), []
    assert error(recorded(launches), images, (64, 16), drawn(images, (64, 16), views=1), blur_kernel=3) <= 1
    assert [launch.kernel.__name__ for launch in launches] == ["augment_whole_kernel"]


@pytest.mark.parametrize("sigma", [0.3, 1.5, 30.0])
def test_halos_of_several_regions(sigma: float) -> None:
    """blur_kernel = 39: radii 2, 8 and 19 of 32-pixel regions: within one region, at its limit, and over several."""
    images, launches = noise(1, 1, 30, 20), []
    params = only(drawn(images, (20, 66), views=1), "blur")
    params = replace(params, sigma=torch.full_like(params.sigma, sigma))
    assert error(recorded(launches), images, (20, 66), params, blur_kernel=39) <= 1
    assert launches[1].constants["MANY"]


def test_large_blur() -> None:
    """Kernels as wide as the reflection allows, sigmas from nearly nothing to nearly flat."""
    images = noise(5, 1, 20, 25)
    params = only(drawn(images, 16, views=1, seed=9), "blur")
    sigma = torch.tensor([[0.01, 0.1, 0.5, 3.0, 30.0]])
    assert error(TRITON, images, 16, replace(params, sigma=sigma), blur_kernel=31) <= 1


@pytest.mark.parametrize("sigma", [float("nan"), 0.0, -1.0])
def test_a_sigma_that_is_none_blurs_nothing(sigma: float) -> None:
    images = noise(1, 3, 20, 25)
    params = drawn(images, 16, views=1)
    blurred = replace(only(params, "blur"), sigma=torch.full_like(params.sigma, sigma))
    assert torch.equal(views_of(TRITON, images, 16, blurred, 5), views_of(TRITON, images, 16, only(params), 5))


def test_half_types_round_as_torch_does() -> None:
    """Finite values of float16, halfway points and the floats beside them, and values out of range; no resize.

    Of bfloat16 the interpreter truncates: on a GPU, test_parity.py has the same test for both.
    """
    exact = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    exact = exact[exact.isfinite()].sort().values.unique()
    halfway = exact[1:] / 2 + exact[:-1] / 2
    beside = [halfway.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    beyond = torch.tensor([65519.0, 65520.0, 65521.0, 7e4, 1e-30, 3e38])
    values = torch.cat([halfway, *beside, exact])
    values = torch.cat([beyond, values[torch.randperm(len(values))[: 64 * 64 - len(beyond)]]]).reshape(1, 1, 64, 64)
    window = torch.tensor([[pack_window(64, 64, (0, 0), (0, 0))]], dtype=torch.int32)
    out = views_of(TRITON, values, 64, window, dtype=torch.float16)
    assert torch.equal((out + 0.0).view(torch.int16), (values.half() + 0.0).view(torch.int16))


@pytest.mark.parametrize("channels_last", [True, False])
def test_no_parameter_reads_outside_of_the_image(channels_last: bool) -> None:
    """Boxes, windows and orders of any integer; around the image lie NaNs."""
    images = noise(1, 3, 9, 11).float() / 255
    surrounded = torch.full((1, 3, 60, 80), float("nan"))
    if channels_last:
        surrounded = surrounded.contiguous(memory_format=torch.channels_last)
    surrounded[..., 20:29, 30:41] = images
    images = surrounded[..., 20:29, 30:41]
    generator = torch.Generator().manual_seed(1)
    edges = torch.tensor([-(2**31), -100, -1, 0, 1, 5, 9, 10, 11, 100, 2**31 - 1])
    words = drawn(images.expand(24, -1, -1, -1), 12, views=1, **FULL).pack()
    for word in (0, 1, 2, 3, 5):
        words[..., word] = edges[torch.randint(len(edges), (1, 24), generator=generator)]
    for word in (12, 13, 14, 15):  # sizes to which a crop is resized: any, but not so large that it loses precision
        words[..., word] = edges[torch.randint(len(edges) - 1, (1, 24), generator=generator)]
    assert views_of(TRITON, images.expand(24, -1, -1, -1), 12, words, 3).isfinite().all()


RECIPES = {
    "imagenet": {},
    "wide": {"solarize_p": 0.3, "scale": (0.02, 1.0), "ratio": (0.1, 12.0), "solarize_threshold": 0.7},
    "never fits": {"scale": (1.0, 1.0), "ratio": (3.0, 3.0)},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("numbers", "seed"), [(None, -77), (2**40, 2**62 + 12345)])
def test_same_draws_as_the_reference(recipe: str, numbers: int | None, seed: int) -> None:
    aug = SimCLRAugment(16, views=3, backend="reference", **RECIPES[recipe])
    one_size, single_pixels = noise(1, 1, 31, 57).expand(60, -1, -1, -1), noise(7, 3, 1, 1)
    ragged = [noise(3, 5 + k, 40 - k) for k in range(9)]
    for batch in map(ImageBatch.of, (one_size, single_pixels, ragged)):
        indices = None if numbers is None else (torch.arange(2 * batch.batch_size) * 3 + numbers)[::2]
        args = (torch.tensor([seed]), indices, batch.table, *batch.size, batch.batch_size, 3, list(aug.recipe))
        assert torch.equal(TRITON.augment_sample(*args), torch.ops.simclr_fast.augment_sample_reference(*args))


def test_empty_batches() -> None:
    images = noise(0, 3, 20, 25)
    params = drawn(images, 16)
    assert views_of(TRITON, images, 16, params, 3).shape == (0, 3, 16, 16)
    recipe = list(SimCLRAugment(16).recipe)
    assert TRITON.augment_sample(torch.tensor([1]), None, None, 20, 25, 0, 2, recipe).shape == (2, 0, 16)


def test_what_cannot_be_served_is_named() -> None:
    images = noise(2, 3, 8, 8)
    params = drawn(images, 8).pack()

    def call(message: str, *, of: Tensor = images, packed: Tensor = params, kernel: int = 1, **changed) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            views_of(TRITON, of, 8, packed, kernel, **changed)

    call(r"params is torch.int64", packed=params.long())
    call(r"images are \(2, 3, 8, 8\), must be \[1, 3, height, width\]", packed=params[:, :1])
    call(r"blur_kernel=4 must be odd", kernel=4)
    call(r"blur_kernel=17 must be odd, with half of it less than the output's sides \(8 x 8\)", kernel=17)
    call(r"images of torch.uint8 to torch.float64 are not served", dtype=torch.float64)
    recipe = list(SimCLRAugment(8).recipe)
    with pytest.raises(ValueError, match=r"seed is torch.int32 \(1,\), must be int64 \[1\]"):
        TRITON.augment_sample(torch.tensor([1], dtype=torch.int32), None, None, 8, 8, 2, 2, recipe)
    with pytest.raises(ValueError, match=r"indices is torch.int64 \(3,\), not int64 \[2\]"):
        TRITON.augment_sample(torch.tensor([1]), torch.arange(3), None, 8, 8, 2, 2, recipe)


@st.composite
def cases(draw) -> dict:
    side = st.integers(1, 50)
    size = (draw(st.integers(1, 32)), draw(st.integers(1, 32)))
    return {
        "shape": (draw(st.sampled_from([1, 3])), draw(side), draw(side)),
        "size": size,
        "black_and_white": draw(st.booleans()),
        "blur_kernel": 2 * draw(st.integers(0, min(6, min(size) - 1))) + 1,
        "jitter": (*(draw(st.floats(0, 2)) for _ in range(3)), draw(st.floats(0, 0.5))),
        "seed": draw(st.integers(0, 2**62)),
        "channels_last": draw(st.booleans()),
    }


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases())
def test_no_counterexample_is_found(case: dict) -> None:
    images = noise(1, *case["shape"], seed=case["seed"])
    images = (images > 127).to(torch.uint8) * 255 if case["black_and_white"] else images
    layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    recipe = {**FULL, "jitter": case["jitter"], "scale": (0.05, 1.0), "ratio": (0.2, 5.0), "blur_sigma": (0.01, 6.0)}
    recipe |= {"blur_kernel": case["blur_kernel"]}
    params = drawn(images, case["size"], views=1, seed=case["seed"], **recipe)
    assert error(TRITON, images, case["size"], params, case["blur_kernel"]) <= 1
