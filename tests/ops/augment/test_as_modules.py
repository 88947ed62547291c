"""The transforms as other code takes modules: saved, composed, with NumPy's numbers, on any default device."""

import io
import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from simclr_fast import SimCLRAugment, SimCLREval
from simclr_fast.ops.augment import ImageBatch
from tests.ops.augment.compare import NAN_OPERATIONS, move, nan_views, noise

TRANSFORMS = (SimCLRAugment(12, views=3, memory_format=torch.contiguous_format), SimCLREval(12, resize=14))


def run(transform, images) -> torch.Tensor:
    return transform(images, seed=5) if isinstance(transform, SimCLRAugment) else transform(images)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["augment", "eval"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_by_every_protocol(transform, protocol: int) -> None:
    images = noise(2, 3, 20, 24)
    copy = pickle.loads(pickle.dumps(transform, protocol))
    assert torch.equal(run(copy, images), run(transform, images))
    assert copy.memory_format == transform.memory_format


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["augment", "eval"])
def test_saved_inside_a_module(transform) -> None:
    file = io.BytesIO()
    torch.save({"model": torch.nn.Sequential(transform, torch.nn.Flatten())}, file)
    file.seek(0)
    images = noise(2, 3, 20, 24)
    copy = torch.load(file, weights_only=False)["model"][0]
    assert torch.equal(run(copy, images), run(transform, images))


def test_any_default_device() -> None:
    """Where tensors are made is the images' affair: a table on the meta device holds no numbers."""
    images = [noise(3, 20, 24), noise(3, 9, 31)]
    batch = noise(2, 3, 20, 24)
    for transform in TRANSFORMS:
        expected = run(transform, images), run(transform, batch)
        torch.set_default_device("meta")
        try:
            actual = run(transform, images), run(transform, batch)
            if isinstance(transform, SimCLRAugment):
                params = transform.sample(images, seed=5)
                assert torch.equal(transform.apply(images, params), expected[0])
        finally:
            torch.set_default_device(None)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected))


@pytest.mark.filterwarnings("error")
def test_meta_images_have_views_of_their_shape() -> None:
    images = torch.empty(5, 3, 20, 24, dtype=torch.uint8, device="meta")
    out = SimCLRAugment(12, views=3, dtype=torch.float16)(images)
    assert (out.shape, out.dtype, out.device.type) == ((15, 3, 12, 12), torch.float16, "meta")
    assert SimCLREval(12)(images).shape == (5, 3, 12, 12)


def test_numbers_of_numpy() -> None:
    images, one = noise(2, 3, 20, 24), np.int64(1)
    plain = SimCLRAugment(12, views=1, blur_kernel=1, mean=0.5)
    numpy = SimCLRAugment(12 * one, views=one, blur_kernel=np.int32(1), mean=np.float32(0.5))
    assert torch.equal(numpy(images, seed=np.int64(7)), plain(images, seed=7))
    assert torch.equal(SimCLREval((np.int16(12), 12), resize=14 * one)(images), SimCLREval(12, resize=14)(images))
    with pytest.raises(ValueError, match="views=True must be an integer"):
        SimCLRAugment(12, views=True)


@pytest.mark.parametrize(("size", "taps"), [((32, 1), 1), ((224, 8), 15), ((1, 1), 1), ((40, 40), 5)])
def test_default_blur_fits_the_output(size: tuple[int, int], taps: int) -> None:
    assert SimCLRAugment(size, blur_p=0).blur_kernel == taps
    assert SimCLRAugment(size, blur_p=1.0)(noise(1, 3, 9, 9)).shape == (2, 3, *size)


def test_labels_do_not_go_through() -> None:
    images, labels = noise(2, 3, 20, 24), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="generator is a Tensor; pass a torch.Generator or None. Labels do not go"):
        v2.Compose([SimCLRAugment(12)])(images, labels)
    assert v2.Compose([SimCLRAugment(12)])(images).shape == (4, 3, 12, 12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": [3, 4]}, TypeError, r"indices is a list; pass torch.as_tensor\(indices, device='cpu'\)"),
        ({"seed": 2**63}, TypeError, "seed=9223372036854775808 must be an integer of 64 bits"),
        ({"seed": True}, TypeError, "seed=True must be an integer of 64 bits"),
        ({"seed": torch.tensor(1.0)}, TypeError, r"seed is torch.float32 \(\) on cpu; pass an integer, or int64 \[1\]"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SimCLRAugment(12)(noise(2, 3, 20, 24), **arguments)


def test_an_unknown_backend_is_noticed_at_construction() -> None:
    for transform in (SimCLRAugment, SimCLREval):
        with pytest.raises(ValueError, match="backend='fast' is unknown; choose one of 'auto', 'cpp'"):
            transform(8, backend="fast")


def test_indices_of_any_stride(place) -> None:
    device, backend = place
    images, aug = noise(5, 3, 20, 24).to(device), SimCLRAugment(12, backend=backend)
    indices = (torch.arange(10, device=device) * 11)[::2]
    assert torch.equal(aug(images, seed=9, indices=indices), aug(images, seed=9, indices=indices.contiguous()))


def test_a_table_that_leaves_the_images_is_refused() -> None:
    batch = ImageBatch.of([noise(3, 8, 9), noise(3, 5, 4)])
    packed = SimCLRAugment(6).sample([noise(3, 8, 9), noise(3, 5, 4)], seed=1).pack()
    settings = (3, 6, 6, [0.5] * 3, [0.5] * 3, 1, torch.float32, True)
    assert torch.ops.simclr_fast.augment(batch.data, batch.table, packed, *settings).shape == (4, 3, 6, 6)
    beyond, below, empty = (
        ((0, 1), (1, 1), (2, 1), (4, 30)),
        ((0, -300), *((k, -300) for k in (3, 4, 5))),
        ((1, -5), (2, -4)),
    )
    for column, change in (*beyond, *below, *empty):
        table = batch.table.clone()
        table[1, column] += change
        with pytest.raises(RuntimeError, match="table row 1 leaves the 276 elements of images"):
            torch.ops.simclr_fast.augment(batch.data, table, packed, *settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", NAN_OPERATIONS)
def test_nan_pixels_stay_nan(place, operation: str, channels: int, dtype: torch.dtype) -> None:
    device, backend = place
    images, transform, params = nan_views(operation, channels, dtype)
    lost = transform("reference").apply(images, params).isnan()
    kept = transform(backend).apply(move(images, device), params.to(device)).isnan().cpu()
    assert lost.any()
    assert not (lost & ~kept).any()
    if operation != "contrast":  # whose mean makes the whole view NaN
        assert not kept.all()
