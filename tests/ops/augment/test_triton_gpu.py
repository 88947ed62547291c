"""The Triton augmentation's registration, and on a GPU what test_parity.py and test_public.py do not ask of it."""

from dataclasses import replace

import pytest
import torch

from simclr_fast import SimCLRAugment, _extension, backends
from simclr_fast.ops.augment import ops  # noqa: F401  (registers the kernels)
from tests.helpers import within
from tests.ops.augment.compare import TOLERANCE, errors, noise, only, transform
from tests.ops.augment.triton_cases import FULL, drawn

PLACE = ("cuda", "triton")


@pytest.mark.parametrize("name", ["augment", "augment_sample"])
def test_registered_for_cuda(name: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"simclr_fast::{name}_triton", "CUDA")


@pytest.mark.gpu
@pytest.mark.parametrize("sigma", [0.3, 1.5, 30.0])
@pytest.mark.parametrize("size", [(20, 66), (100, 130), (300, 70)])
def test_halos_of_several_regions(size: tuple[int, int], sigma: float) -> None:
    images = noise(4, 3, 90, 70)
    params = only(drawn(images, size), "jitter", "blur")
    params = replace(params, sigma=torch.full_like(params.sigma, sigma))
    assert within("view", errors(PLACE, images, size, params, blur_kernel=39).max(), TOLERANCE)


@pytest.mark.gpu
def test_no_parameter_reads_outside_of_the_image() -> None:
    """Boxes and orders of any integer; around the image lie NaNs."""
    surrounded = torch.full((1, 3, 60, 80), float("nan"))
    surrounded[..., 20:29, 30:41] = noise(1, 3, 9, 11).float() / 255
    images = surrounded.cuda()[..., 20:29, 30:41].expand(256, -1, -1, -1)
    params = drawn(noise(256, 3, 9, 11), 72, **FULL)
    edges = torch.tensor([-(2**31), -100, -1, 0, 1, 5, 9, 10, 11, 100, 2**31 - 1], dtype=torch.int32)
    wild = {
        name: edges[torch.randint(len(edges), params.top.shape)] for name in ("top", "left", "height", "width", "order")
    }
    out = transform(72, backend="triton").apply(images, replace(params, **wild).to("cuda"))
    assert out.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("size", [32, 96])
def test_the_same_call_gives_the_same_bits(size: int) -> None:
    images = noise(64, 3, 61, 47).cuda()
    aug = SimCLRAugment(size, solarize_p=0.2, backend="triton")
    params = aug.sample(images, seed=1)
    first = aug.apply(images, params)
    assert all(torch.equal(aug.apply(images, params), first) for _ in range(5))


@pytest.mark.gpu
def test_compiled_in_one_graph() -> None:
    images, seed = noise(8, 3, 40, 40).cuda(), torch.tensor([5], device="cuda")
    aug = SimCLRAugment(32, backend="triton")
    compiled = torch.compile(lambda images: aug(images, seed=seed), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images), aug(images, seed=seed))


@pytest.mark.gpu
def test_serves_where_the_extension_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(8, 3, 40, 40).cuda()
    expected = SimCLRAugment(32, backend="triton")(images, seed=3)
    monkeypatch.setattr(_extension, "missing_because", "it is hidden")
    backends.forget_choices()
    try:
        assert torch.equal(SimCLRAugment(32)(images, seed=3), expected)
    finally:
        backends.forget_choices()
