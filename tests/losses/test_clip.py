"""CLIP against the two cross-entropies of its paper: values, gradients, the call of open_clip, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_fast import CLIPLoss, clip_loss, distributed
from tests.helpers import relative_error
from tests.losses.compare import BACKENDS, anchored, check, same_when_compiled, unit
from tests.ntxent_truth import KINDS, TEMPERATURES, embeddings


def exact(images: Tensor, texts: Tensor, t: Tensor, normalize: bool = False) -> Tensor:
    """The mean loss at logit_scale = 1 / t."""
    x, y = (unit(images), unit(texts)) if normalize else (images, texts)
    s, positive = x @ y.T / t, torch.eye(len(x), dtype=torch.bool)
    return (anchored(s, positive) + anchored(s.T, positive)).mean() / 2


def open_clip(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """As it is usually written."""
    s, labels = logit_scale * images @ texts.T, torch.arange(len(images))
    return (F.cross_entropy(s, labels) + F.cross_entropy(s.T, labels)) / 2


def features(kind: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [unit(z).to(dtype) for z in embeddings(kind, n, d, torch.float64)]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalize", [False, True], ids=["as they are", "normalised"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(backend: str, normalize: bool, kind: str, temperature: float) -> None:
    rows = list(embeddings(kind, 60, 48, torch.float32)) if normalize else features(kind, 60, 48)
    check(
        lambda x, y, t: clip_loss(x, y, 1 / t.double(), normalize=normalize, backend=backend),
        lambda x, y, t: exact(x, y, t, normalize),
        rows,
        temperature,
        kind if normalize or kind in ("equal", "opposed") else "random",
    )


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (7, 1), (5, 123)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_and_dtypes(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    check(
        lambda x, y, t: clip_loss(x, y, 1 / t, backend=backend),
        exact,
        features("random", *shape, dtype),
        0.1,
        "random" if shape[0] > 1 else "equal",
    )


def test_it_is_called_as_open_clip_is() -> None:
    x, y = features("random", 6, 5)
    scale = torch.tensor(14.3, requires_grad=True)
    expected = open_clip(x, y, scale)
    loss = CLIPLoss(local_loss=True, gather_with_grad=True, cache_labels=True, rank=0, world_size=1)(x, y, scale)
    assert relative_error(loss, expected) <= 1e-6
    assert relative_error(*(torch.autograd.grad(value, scale)[0] for value in (loss, expected))) <= 1e-5
    for bias in (torch.tensor(3.0), torch.tensor([torch.inf]), torch.tensor(-3.0, dtype=torch.float64)):
        bias.requires_grad_()
        result = CLIPLoss()(image_features=x, text_features=y, logit_scale=scale, logit_bias=bias, output_dict=True)
        assert torch.equal(result["contrastive_loss"], loss)
        assert result["contrastive_loss"].dtype == loss.dtype
        result["contrastive_loss"].backward()
        assert bias.grad == 0
    assert torch.equal(CLIPLoss()(x, y, 14.3), clip_loss(x, y, 14.3))


@pytest.mark.parametrize("normalize", [False, True])
def test_reductions_and_gradcheck(normalize: bool) -> None:
    x, y = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_().unbind()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor, y: Tensor, scale: Tensor, reduction: str = "mean") -> Tensor:
        return clip_loss(x, y, scale, normalize=normalize, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (x, y, scale))
    losses = loss(x, y, scale, reduction="none")
    assert losses.shape == (4,)
    assert relative_error(loss(x, y, scale, reduction="sum"), losses.sum()) <= 1e-14
    assert relative_error(loss(x, y, scale), losses.mean()) <= 1e-14


def test_compiles_for_all_batch_sizes() -> None:
    scale = torch.tensor(10.0)
    calls = [(*features("random", n, 5), scale) for n in (6, 9, 12)]
    same_when_compiled(lambda x, y, scale: clip_loss(x, y, scale, backend="cpp"), calls)


GOOD = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image_features": [[1.0]]}, TypeError, "image_features is a list: pass a torch.Tensor"),
        ({"text_features": [[1.0]]}, TypeError, "text_features is a list: pass a torch.Tensor"),
        ({"text_features": GOOD[:3]}, ValueError, r"image_features \(4, 3\) and text_features \(3, 3\) differ"),
        ({"text_features": GOOD.double()}, TypeError, "image_features is torch.float32 and text_features is torch.fl"),
        ({"logit_scale": 0.0}, ValueError, "logit_scale=0.0: pass a positive, finite number"),
        *(
            ({"logit_scale": kind(bad)}, ValueError, f"logit_scale={bad:.0f}.*: pass a positive, finite number")
            for bad in (-1.0, math.inf, math.nan)
            for kind in (float, torch.tensor)
        ),
        ({"logit_scale": torch.tensor(1e-42)}, ValueError, "logit_scale=1.*e-42: pass a positive, finite number"),
        ({"logit_scale": torch.ones(1).to_sparse()}, ValueError, r"logit_scale has shape \(1,\) and"),
        ({"logit_scale": torch.ones(2)}, ValueError, r"logit_scale has shape \(2,\) and dtype torch.float32"),
        ({"logit_scale": torch.tensor(1.0, device="meta")}, ValueError, "logit_scale is on meta and image_features is"),
        ({"logit_scale": "1"}, TypeError, "logit_scale is a str: pass a float"),
        ({"normalize": None}, TypeError, "normalize is a NoneType: pass True or False"),
        ({"reduction": "avg"}, ValueError, "reduction='avg': choose one of"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot serve clip_loss on cpu"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        clip_loss(**{"image_features": GOOD, "text_features": GOOD, "logit_scale": 10.0, **change})


def test_the_module_refuses_bad_options() -> None:
    with pytest.raises(ValueError, match="use_horovod=True: Horovod is not supported"):
        CLIPLoss(use_horovod=True)
    with pytest.raises(ValueError, match="reduction='avg': choose one of"):
        CLIPLoss(reduction="avg")
    with pytest.raises(TypeError, match="normalize is a int: pass True or False"):
        CLIPLoss(normalize=1)
    with pytest.raises(ValueError, match="backend='cuda' is unknown"):
        CLIPLoss(backend="cuda")
    with pytest.raises(TypeError, match="logit_bias is a str: pass a float, a tensor, or None"):
        CLIPLoss()(GOOD, GOOD, 10.0, "0.5")
    with pytest.raises(ValueError, match="rank=1, world_size=2: torch.distributed knows rank 0 of 1; call init_proc"):
        CLIPLoss(rank=1, world_size=2)(GOOD, GOOD, 10.0)


def test_another_rank_than_that_of_the_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank_and_size", lambda group: (1, 2))
    with pytest.raises(ValueError, match="rank=0, world_size=2: torch.distributed knows rank 1 of 2"):
        CLIPLoss(rank=0, world_size=2)(GOOD, GOOD, 10.0)
