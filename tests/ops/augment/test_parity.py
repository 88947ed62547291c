"""Every kernel equals torchvision applied per sample, operation by operation and as a whole."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simclr_fast import SimCLREval
from simclr_fast.ops.augment import ORDERS, ImageBatch, augment
from simclr_fast.ops.augment.params import pack_window
from simclr_fast.ops.augment.reference import augment_one
from tests.helpers import within
from tests.ops.augment.compare import TOLERANCE, errors, move, noise, only, transform

FULL = {"hflip": 0.5, "jitter_p": 0.8, "gray_p": 0.3, "blur_p": 0.5, "solarize_p": 0.3}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "operation", ["none", "hflip", "brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize"]
)
def test_each_operation_alone(place, operation: str, channels: int) -> None:
    images = noise(4, channels, 45, 38)
    aug = transform(33, blur_kernel=9)
    params = only(
        aug.sample(images, seed=1),
        "jitter" if operation in ("brightness", "contrast", "saturation", "hue") else operation,
    )
    neutral = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    params = replace(
        params, **{name: torch.full_like(params.hue, value) for name, value in neutral.items() if name != operation}
    )
    assert within("view", errors(place, images, 33, params, blur_kernel=9).max(), TOLERANCE)


@pytest.mark.parametrize("size", [32, 96])
def test_whole_chain_in_all_orders(place, size: int) -> None:
    images = noise(24, 3, 61, 47)
    params = only(transform(size).sample(images, seed=2), "hflip", "jitter", "blur", "solarize")
    params = replace(params, order=torch.arange(24, dtype=torch.int32).expand(2, 24))
    assert within("view", errors(place, images, size, params).max(), TOLERANCE)


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 9), (7, 1), (5, 4), (32, 32), (96, 96), (224, 224), (300, 31), (500, 333)]
)
def test_sizes(place, shape: tuple[int, int], size: int) -> None:
    images = noise(2, 3, *shape)
    aug = transform(size, **FULL)
    params = aug.sample(images, seed=3)
    assert within("view", errors(place, images, size, params).max(), TOLERANCE)
    whole = replace(
        params,
        top=torch.zeros_like(params.top),
        left=torch.zeros_like(params.left),
        height=torch.full_like(params.height, shape[0]),
        width=torch.full_like(params.width, shape[1]),
    )
    assert within("view", errors(place, images, size, whole).max(), TOLERANCE)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (17, 65), (130, 50)])
def test_output_shapes(place, size: tuple[int, int]) -> None:
    images = noise(3, 3, 40, 50)
    params = transform(size, blur_kernel=1, **FULL).sample(images, seed=4)
    assert within("view", errors(place, images, size, params, blur_kernel=1).max(), TOLERANCE)


def layouts() -> dict:
    planar = noise(4, 3, 40, 50)
    rgba = noise(4, 40, 50, 4).permute(0, 3, 1, 2)
    wide = noise(4, 3, 80, 150)
    return {
        "channels-last": planar.contiguous(memory_format=torch.channels_last),
        "a crop of larger images": wide[:, :, 20:60, 30:80],
        "every second pixel": wide[:, :, ::2, ::3],
        "rgb of rgba": rgba[:, :3],
        "transposed": noise(4, 3, 50, 40).transpose(2, 3),
        "one image for all": planar[:1].expand(4, -1, -1, -1),
        "float32": planar.float() / 255,
        "float32 channels-last": (planar.float() / 255).contiguous(memory_format=torch.channels_last),
        "float16": (planar.float() / 255).half(),
        "bfloat16": (planar.float() / 255).bfloat16(),
        "gray": planar[:, :1],
        "gray channels-last": planar[:, :1].contiguous(memory_format=torch.channels_last),
        "ragged": [noise(3, 40, 50), noise(3, 1, 1), noise(31, 99, 3).permute(2, 0, 1), wide[0, :, 3:30, ::2]],
        "ragged float16": [(image.float() / 255).half() for image in (noise(3, 40, 50), noise(3, 60, 20))],
        "ragged gray": [noise(1, 28, 28), noise(1, 40, 20)],
    }


@pytest.mark.parametrize("layout", layouts())
def test_images_keep_their_strides_on_the_way_to_a_device(layout: str) -> None:
    images = layouts()[layout]
    assert [image.stride() for image in move(images, "meta")] == [image.stride() for image in images]


@pytest.mark.parametrize("layout", layouts())
def test_input_layouts_and_types(place, layout: str) -> None:
    images = layouts()[layout]
    params = transform(32, **FULL).sample(images, seed=5)
    assert within("view", errors(place, images, 32, params).max(), TOLERANCE)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, TOLERANCE), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_output_types_and_layouts(place, channels: int, dtype: torch.dtype, tolerance: float, memory_format) -> None:
    images = noise(4, channels, 40, 50)
    params = transform(37, **FULL).sample(images, seed=6)
    assert within("view", errors(place, images, 37, params, dtype=dtype, memory_format=memory_format).max(), tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_round_as_torch_does(place, dtype: torch.dtype) -> None:
    """Every finite value, the halfway points between neighbours and the floats beside them, and values out of range."""
    device, backend = place
    exact = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    exact = exact[exact.isfinite() & ~((exact == 0) & exact.signbit())].sort().values
    halfway = exact[1:] / 2 + exact[:-1] / 2
    beside = [halfway.nextafter(torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    beyond = torch.tensor([65519.0, 65520.0, 65521.0, 7e4, 1e-30, 3e38])
    for images in (torch.cat([exact, halfway, *beside, beyond]), exact.to(dtype)):
        # One pixel high and as wide as the output: the resize changes nothing.
        row = images.reshape(1, 1, 1, -1).to(device)
        size = (1, row.shape[-1])
        words = torch.tensor([[pack_window(*size, (0, 0), (0, 0))]], dtype=torch.int32, device=device)
        out = augment(ImageBatch.of(row), words, size, [0.0], [1.0], 1, dtype, False, backend).cpu().flatten()
        # Adding zero, as the sums do, turns a zero that a negative number was rounded to into +0.
        assert torch.equal((out + 0.0).view(torch.int16), (images.float().to(dtype) + 0.0).view(torch.int16))


def test_normalisation(place) -> None:
    device, backend = place
    images, (mean, std) = noise(3, 3, 40, 50), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    aug = transform(32, **FULL)
    params = aug.sample(images, seed=7)
    plain = transform(32, backend="reference", **FULL).apply(images, params)
    normalised = type(aug)(32, mean=mean, std=std, backend=backend, **FULL).apply(images.to(device), params.to(device))
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert within("view", (normalised.cpu() - expected).abs().max(), TOLERANCE / min(std))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_solarize_thresholds(place, threshold: float) -> None:
    """Equal but for pixels that stand within rounding of the threshold, which may fall on either side of it."""
    device, backend = place
    images = noise(4, 3, 40, 50)
    params = only(transform(32, solarize_threshold=threshold).sample(images, seed=8), "jitter", "solarize")
    before = transform(32, backend="reference").apply(images, only(params, "jitter"))
    truth = transform(32, backend="reference").apply(images, params)
    actual = transform(32, backend=backend).apply(images.to(device), params.to(device)).cpu()
    on_the_edge = (before - threshold).abs() < TOLERANCE
    if threshold not in (0.0, 1.0):  # clamping puts many pixels at exactly 0 and 1, which every backend does
        assert on_the_edge.float().mean() < 0.01
        actual[on_the_edge] = truth[on_the_edge]
    assert within("view", (actual - truth).abs().max(), TOLERANCE)


def test_large_blur(place) -> None:
    """Kernels as wide as the reflection allows, sigmas from nearly nothing to nearly flat."""
    images = noise(6, 3, 40, 50)
    params = only(transform(32, blur_kernel=63).sample(images, seed=9), "blur")
    sigma = torch.tensor([0.01, 0.1, 0.5, 3.0, 7.0, 30.0]).expand(2, 6)
    assert within("view", errors(place, images, 32, replace(params, sigma=sigma), blur_kernel=63).max(), TOLERANCE)


def test_blur_of_extremes(place) -> None:
    """The worst image for a truncated kernel: a step between 0 and 1."""
    images = torch.zeros(20, 1, 64, 64, dtype=torch.uint8)
    images[:, :, 20:, 24:] = 255
    params = only(transform(64, blur_kernel=23, scale=(1.0, 1.0), ratio=(1.0, 1.0)).sample(images, seed=1), "blur")
    sigma = torch.linspace(0.1, 2.0, 20).expand(2, 20)
    assert within("view", errors(place, images, 64, replace(params, sigma=sigma), blur_kernel=23).max(), TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "resize"), [((3, 40, 50), 32), ((3, 40, 50), 36), ((1, 28, 28), 32), ((3, 500, 333), 40), ((3, 1, 3), 33)]
)
def test_eval_is_resize_and_centre_crop(place, shape: tuple[int, int, int], resize: int) -> None:
    from torchvision.transforms import v2

    device, backend = place
    images = noise(3, *shape)
    theirs = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Resize(resize, antialias=True),
            v2.CenterCrop(32),
            v2.Normalize([0.5], [0.25]),
        ]
    )
    for batch in (images, list(images)):
        ours = SimCLREval(32, resize=resize, mean=0.5, std=0.25, backend=backend)(move(batch, device))
        assert within("view", (ours.cpu() - theirs(images)).abs().max(), TOLERANCE / 0.25)


def test_eval_of_ragged_images(place) -> None:
    device, backend = place
    images = [noise(3, 40, 50), noise(3, 33, 99), noise(3, 20, 20)]
    aug = SimCLREval(24, resize=30, backend=backend)
    together = aug(move(images, device))
    alone = torch.cat([aug(image[None].to(device)) for image in images])
    assert torch.equal(together, alone)


def test_the_reference_is_torchvisions_transforms() -> None:
    """The functional calls of the reference, against the transform classes with the same parameters."""
    from torchvision.transforms import v2

    images = noise(8, 3, 40, 50)
    params = transform(32, **FULL).sample(images, seed=11)
    fields = {name: value.tolist() for name, value in vars(params).items()}
    crop, jitter, blur = v2.RandomResizedCrop(32), v2.ColorJitter(0.8, 0.8, 0.8, 0.2), v2.GaussianBlur(3)
    for k in range(8):
        p = {name: value[0][k] for name, value in fields.items()}
        x = v2.functional.to_dtype(images[k], torch.float32, scale=True)
        x = crop.transform(x, {name: p[name] for name in ("top", "left", "height", "width")})
        x = v2.RandomHorizontalFlip(p=1).transform(x, {}) if p["hflip"] else x
        if p["jitter"]:
            factors = {f"{name}_factor": p[name] for name in ("brightness", "contrast", "saturation", "hue")}
            x = jitter.transform(x, {"fn_idx": torch.tensor(ORDERS[p["order"]]), **factors})
        x = v2.RandomGrayscale(p=1).transform(x, {"num_input_channels": 3}) if p["gray"] else x
        x = blur.transform(x, {"sigma": [p["sigma"], p["sigma"]]}) if p["blur"] else x
        x = v2.RandomSolarize(0.5, p=1).transform(x, {}) if p["solarize"] else x
        assert torch.equal(augment_one(images[k], p, 32, 32, 3), x)


@st.composite
def cases(draw) -> dict:
    side = st.integers(1, 70)
    size = (draw(st.integers(1, 50)), draw(st.integers(1, 50)))
    return {
        "batch": draw(st.integers(1, 3)),
        "channels": draw(st.sampled_from([1, 3])),
        "shape": (draw(side), draw(side)),
        "size": size,
        "content": draw(st.sampled_from(["noise", "black and white", "pure colours", "dark", "flat"])),
        "blur_kernel": 2 * draw(st.integers(0, min(15, min(size) - 1))) + 1,
        "jitter": (*(draw(st.floats(0, 2)) for _ in range(3)), draw(st.floats(0, 0.5))),
        "scale": (draw(st.floats(0.01, 0.5)), draw(st.floats(0.5, 1.0))),
        "seed": draw(st.integers(0, 2**62)),
        "floats": draw(st.booleans()),
        "channels_last": draw(st.booleans()),
    }


def content(case: dict) -> torch.Tensor:
    images = noise(case["batch"], case["channels"], *case["shape"], seed=case["seed"])
    if case["content"] == "black and white":
        images = (images[:, :1] > 127).to(torch.uint8).mul(255).expand_as(images)
    elif case["content"] == "pure colours":
        images = (images > 127).to(torch.uint8) * 255
    elif case["content"] == "dark":
        images = images // 128
    elif case["content"] == "flat":
        images = images[:, :, :1, :1].expand_as(images)
    images = images.float() / 255 if case["floats"] else images
    return images.contiguous(memory_format=torch.channels_last if case["channels_last"] else torch.contiguous_format)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_no_counterexample_is_found(case: dict) -> None:
    """Any image, any draw of any recipe: the CPU kernel stays within the tolerance of torchvision."""
    images = content(case)
    recipe = {
        "jitter": case["jitter"],
        "scale": case["scale"],
        "ratio": (0.2, 5.0),
        "blur_kernel": case["blur_kernel"],
        "blur_sigma": (0.01, 6.0),
        "jitter_p": 0.9,
        "gray_p": 0.3,
        "blur_p": 0.5,
        "solarize_p": 0.3,
    }
    params = transform(case["size"], **recipe).sample(images, seed=case["seed"])
    off = errors(("cpu", "cpp"), images, case["size"], params, blur_kernel=case["blur_kernel"])
    assert within("view", off.max(), TOLERANCE)
