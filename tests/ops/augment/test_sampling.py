"""The draws: torchvision's distributions, keyed by (seed, sample, view) alone, the same on every backend."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from simclr_fast import SimCLRAugment
from simclr_fast.ops.augment.params import ORDERS, AugmentParams
from simclr_fast.ops.augment.reference_sampling import philox4x32, sample_reference

# Kolmogorov-Smirnov tests run on fixed seeds, so they pass or fail for good; p below this is a wrong distribution.
LEAST_P = 1e-3
DRAWS = 4000


def drawn(aug: SimCLRAugment, height: int, width: int, seed: int = 1) -> AugmentParams:
    """Parameters of DRAWS samples, one view each, for images of one size (no pixel is read)."""
    images = torch.empty((1, 3, height, width), dtype=torch.uint8).expand(DRAWS, -1, -1, -1)
    return aug.sample(images, seed=seed)


def test_philox_known_answers() -> None:
    """The vectors of the Random123 distribution (kat_vectors)."""
    vectors = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, expected in vectors:
        words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
        assert tuple(word.item() for word in words) == expected


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (256, 256, (0.08, 1.0), (3 / 4, 4 / 3)),
        (333, 500, (0.2, 0.9), (0.5, 2.5)),
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: tuple, ratio: tuple) -> None:
    p = drawn(SimCLRAugment(32, scale=scale, ratio=ratio, views=1, backend="reference"), height, width)
    theirs = v2.RandomResizedCrop(32, scale=scale, ratio=ratio)
    image = torch.empty((3, height, width))
    boxes = [theirs.make_params([image]) for _ in range(DRAWS)]
    for name in ("top", "left", "height", "width"):
        ours = getattr(p, name)[0].numpy()
        assert stats.ks_2samp(ours, [box[name] for box in boxes]).pvalue > LEAST_P, name
    area, their_area = p.height * p.width, [box["height"] * box["width"] for box in boxes]
    assert stats.ks_2samp(area[0].numpy(), their_area).pvalue > LEAST_P
    assert bool((p.top >= 0).all() and (p.top + p.height <= height).all() and (p.left + p.width <= width).all())


@pytest.mark.parametrize(("height", "width"), [(500, 10), (10, 500), (1, 1), (1, 7)])
def test_a_crop_that_cannot_fit_falls_back_to_the_centre(height: int, width: int) -> None:
    p = drawn(SimCLRAugment(8, scale=(1.0, 1.0), views=1, blur_p=0, backend="reference"), height, width)
    theirs = v2.RandomResizedCrop(8, scale=(1.0, 1.0)).make_params([torch.empty((3, height, width))])
    for name, value in theirs.items():
        assert bool((getattr(p, name) == value).all()), name


def test_jitter_is_distributed_as_torchvisions() -> None:
    p = drawn(SimCLRAugment(32, strength=1.0, jitter=(0.8, 0.4, 1.2, 0.2), views=1, backend="reference"), 32, 32)
    theirs = v2.ColorJitter(0.8, 0.4, 1.2, 0.2)
    made = [theirs.make_params([]) for _ in range(DRAWS)]
    for name in ("brightness", "contrast", "saturation", "hue"):
        their_values = [params[f"{name}_factor"] for params in made]
        assert stats.ks_2samp(getattr(p, name)[0].numpy(), their_values).pvalue > LEAST_P, name
    assert stats.chisquare(torch.bincount(p.order[0], minlength=24).numpy()).pvalue > LEAST_P


def test_flags_and_sigma() -> None:
    aug = SimCLRAugment(
        32,
        hflip=0.5,
        jitter_p=0.8,
        gray_p=0.2,
        blur_p=0.3,
        solarize_p=0.1,
        blur_sigma=(0.1, 2.0),
        views=1,
        backend="reference",
    )
    p = drawn(aug, 32, 32)
    for name, probability in (("hflip", 0.5), ("jitter", 0.8), ("gray", 0.2), ("blur", 0.3), ("solarize", 0.1)):
        count = int(getattr(p, name).sum())
        assert stats.binomtest(count, DRAWS, probability).pvalue > LEAST_P, name
    assert stats.kstest(p.sigma[0].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > LEAST_P
    always = drawn(SimCLRAugment(32, hflip=1, jitter_p=1, gray_p=1, blur_p=1, solarize_p=1, views=1), 32, 32)
    never = drawn(SimCLRAugment(32, hflip=0, jitter_p=0, gray_p=0, blur_p=0, solarize_p=0, views=1), 32, 32)
    for name in ("hflip", "jitter", "gray", "blur", "solarize"):
        assert bool(getattr(always, name).all())
        assert not bool(getattr(never, name).any())


def test_draws_are_independent() -> None:
    """Neighbouring samples, views and parameters are uncorrelated."""
    images = torch.empty((1, 3, 256, 256), dtype=torch.uint8).expand(DRAWS, -1, -1, -1)
    p = SimCLRAugment(32, views=2, backend="reference").sample(images, seed=3)
    columns = {
        **{
            f"{name}{view}": getattr(p, name)[view].double()
            for name, view in itertools.product(
                ("top", "height", "order", "hflip", "jitter", "gray", "blur", "brightness", "hue", "sigma"), (0, 1)
            )
        },
        "next sample": p.brightness[0].roll(1).double(),
    }
    correlation = torch.corrcoef(torch.stack(list(columns.values())))
    names = list(columns)
    for i, j in itertools.combinations(range(len(names)), 2):
        if {names[i][:-1], names[j][:-1]} == {"top", "height"} and names[i][-1] == names[j][-1]:
            continue  # a tall crop has less room to move
        assert abs(correlation[i, j].item()) < 5 / math.sqrt(DRAWS), (names[i], names[j])


class DivisorsAreTensors(TorchDispatchMode):
    """Fails a division by a Python number, for which CUDA multiplies by the rounded reciprocal."""

    divisions = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket == torch.ops.aten.div:
            self.divisions += 1
            assert all(isinstance(operand, Tensor) for operand in args), (op, args)
        return op(*args, **(kwargs or {}))


def test_the_reference_divides_as_ieee_754_says_on_every_device() -> None:
    images, recipe = torch.zeros((10, 3, 5, 90), dtype=torch.uint8), list(SimCLRAugment(16).recipe)
    with DivisorsAreTensors() as mode:
        packed = sample_reference(torch.tensor([5]), None, None, 5, 90, 10, 2, recipe)
    assert mode.divisions > 10
    assert torch.equal(packed, SimCLRAugment(16).sample(images, seed=5).pack())


@pytest.mark.gpu
def test_the_reference_draws_the_same_on_a_gpu() -> None:
    images, indices = torch.zeros((500, 1, 31, 57), dtype=torch.uint8), torch.arange(500) * 7**18
    aug = SimCLRAugment(16, backend="reference", scale=(0.02, 1.0), ratio=(0.1, 12.0), views=3)
    drawn = aug.sample(images.cuda(), seed=-77, indices=indices.cuda()).pack()
    assert torch.equal(drawn.cpu(), aug.sample(images, seed=-77, indices=indices).pack())


def test_orders_are_itertools_permutations() -> None:
    assert len(set(ORDERS)) == 24
    assert tuple(itertools.permutations(range(4))) == ORDERS


def split_draws(aug: SimCLRAugment, images: Tensor, indices: Tensor, parts: list[int]) -> Tensor:
    seed = torch.tensor([12345])
    pieces = [
        aug.sample(part, indices=index, seed=seed).pack()
        for part, index in zip(images.split(parts), indices.split(parts))
    ]
    return torch.cat(pieces, dim=1)


def test_draws_do_not_depend_on_the_batch_split() -> None:
    images = torch.zeros((10, 3, 40, 50), dtype=torch.uint8)
    aug = SimCLRAugment(16, views=3)
    indices = torch.arange(10) + 2**33
    whole = split_draws(aug, images, indices, [10])
    assert torch.equal(whole, split_draws(aug, images, indices, [1, 4, 5]))
    assert torch.equal(whole[:, [3, 7]], aug.sample(images[:2], indices=indices[[3, 7]], seed=12345).pack())
    # Views are nested too: asking for fewer gives the first of them.
    assert torch.equal(whole[:2], SimCLRAugment(16, views=2).sample(images, indices=indices, seed=12345).pack())


def test_generators_and_seeds() -> None:
    images = torch.zeros((4, 3, 40, 50), dtype=torch.uint8)
    aug = SimCLRAugment(16)

    def pack(**kwargs) -> Tensor:
        return aug.sample(images, **kwargs).pack()

    assert torch.equal(
        pack(generator=torch.Generator().manual_seed(1)), pack(generator=torch.Generator().manual_seed(1))
    )
    torch.manual_seed(5)
    first, second = pack(), pack()
    torch.manual_seed(5)
    assert torch.equal(first, pack())
    assert not torch.equal(first, second)
    assert not torch.equal(pack(seed=1), pack(seed=1 + 2**32)), "both halves of the seed count"
    assert not torch.equal(pack(seed=1), pack(seed=-1))
