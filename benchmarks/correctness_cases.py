"""What every loss is tried on, and what it is by definition: its value and gradient in float64."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from simclr_fast.ops.ntxent.reference import normalize_rows
from tests.ntxent_truth import KINDS, embeddings

N, D = 37, 123  # odd, and no multiple of any tile
BANK = 41
CLASSES = 5
DTYPES = ("float64", "float32", "float16", "bfloat16")
TEMPERATURES = (0.5, 0.1, 0.05, 0.03, 0.01)
# Random rows of another shape, which are kinds of input to a reader of the page.
SHAPES = {"one column": (N, 1), "one sample": (1, D)}


@dataclass(frozen=True)
class Case:
    """Rows of one kind, in one dtype, at one temperature."""

    kind: str
    dtype: str
    temperature: float


@dataclass(frozen=True)
class Term:
    """One direction of a loss: cosines [R, C], which columns are a row's positives, and which its sum runs over."""

    cosines: Tensor
    positives: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class Loss:
    """A loss by definition: `terms(u0, u1, *extra)` are averaged; `extra(kind)` makes what it takes beside views."""

    title: str
    formula: str
    terms: Callable[..., list[Term]]
    extra: Callable[[str], tuple[Tensor, ...]] = lambda kind: ()
    more_kinds: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*KINDS, *SHAPES, *self.more_kinds)


def _eye(rows: Tensor) -> Tensor:
    return torch.eye(len(rows), dtype=torch.bool)


def _ntxent(u0: Tensor, u1: Tensor) -> list[Term]:
    u = torch.cat([u0, u1])
    return [Term(u @ u.T, _eye(u).roll(len(u0), 0), ~_eye(u))]


def _info_nce(u0: Tensor, u1: Tensor) -> list[Term]:
    return [Term(u0 @ u1.T, _eye(u0), torch.ones_like(_eye(u0)))]


def _clip(u0: Tensor, u1: Tensor) -> list[Term]:
    return [*_info_nce(u0, u1), *_info_nce(u1, u0)]


def _bank(u0: Tensor, u1: Tensor, bank: Tensor) -> list[Term]:
    cosines = torch.cat([(u0 * u1).sum(1, keepdim=True), u0 @ normalize_rows(bank).T], dim=1)
    candidates = torch.ones_like(cosines, dtype=torch.bool)
    return [Term(cosines, candidates & (torch.arange(cosines.shape[1]) == 0), candidates)]


def _sup_con(u0: Tensor, u1: Tensor, labels: Tensor) -> list[Term]:
    u = torch.cat([u0, u1])
    return [Term(u @ u.T, (labels[:, None] == labels) & ~_eye(u), ~_eye(u))]


def _bank_rows(kind: str) -> tuple[Tensor]:
    rows = torch.randn(BANK, SHAPES.get(kind, (N, D))[1], generator=torch.Generator().manual_seed(2))
    return (torch.nn.functional.normalize(rows),)


def _labels(kind: str) -> tuple[Tensor]:
    """Of the rows of both views, [2N]."""
    labels = torch.arange(2 * SHAPES.get(kind, (N, D))[0]) % (1 if kind in ("one class", "one sample") else CLASSES)
    if kind == "class of one":
        labels[3] = CLASSES
    return (labels,)


LOSSES = {
    "ntxent": Loss(
        "NT-Xent",
        "L_i = log(1 + sum_j exp(s_ij - s_ip)), j over all rows of both views but i and its positive p",
        _ntxent,
    ),
    "info_nce": Loss(
        "InfoNCE, negatives in the batch",
        "L_i = log(1 + sum_j exp(s_ij - s_ii)), i a query, j over the keys of the other queries",
        _info_nce,
    ),
    "bank": Loss(
        "InfoNCE against a memory bank or given negatives",
        "L_i = log(1 + sum_k exp(q_i . b_k / t - s_ii)), b_k over the rows of the bank, which gets no gradient",
        _bank,
        _bank_rows,
    ),
    "clip": Loss("CLIP", "the mean of InfoNCE of images against texts and of texts against images", _clip),
    "sup_con": Loss(
        "SupCon",
        "L_i = mean over the positives p of i of log(1 + sum_j exp(s_ij - s_ip)), j over all rows but i and p "
        "(L_out of Khosla et al.); rows without a positive do not count",
        _sup_con,
        _labels,
        ("one class", "class of one"),
    ),
}


def cases(loss: Loss, dtypes: tuple[str, ...] = DTYPES, temperatures=TEMPERATURES) -> Iterator[Case]:
    """Every case of a loss."""
    return (Case(kind, dtype, t) for dtype in dtypes for kind in loss.kinds for t in temperatures)


def inputs(loss: Loss, case: Case) -> tuple[Tensor, ...]:
    """Views z0, z1 [N, D] and what else the loss takes: a bank of the views' dtype, or labels."""
    dtype = getattr(torch, case.dtype)
    kind = case.kind if case.kind in KINDS else "random"
    views = embeddings(kind, *SHAPES.get(case.kind, (N, D)), dtype, torch.Generator().manual_seed(1))
    extra = loss.extra(case.kind)
    return *views, *(x.to(dtype) if x.is_floating_point() else x for x in extra)


def vanishes(name: str, kind: str) -> bool:
    """Whether the gradient is 0 by symmetry, so that an error has nothing to be relative to but its natural size."""
    return kind == "one column" or (name != "bank" and kind in ("equal", "one sample"))


def truth(loss: Loss, made: tuple[Tensor, ...], temperature: float) -> tuple[float, Tensor]:
    """The loss and its gradient in both views [2N, D], float64, of inputs as they were rounded."""
    z0, z1 = (z.detach().cpu().double().requires_grad_() for z in made[:2])
    extra = [x.cpu().double() if x.is_floating_point() else x.cpu() for x in made[2:]]
    terms = loss.terms(normalize_rows(z0), normalize_rows(z1), *extra)
    value = torch.stack([_mean(term, temperature) for term in terms]).mean()
    return value.item(), torch.cat(torch.autograd.grad(value, (z0, z1)))


def _mean(term: Term, temperature: float) -> Tensor:
    """Mean over the rows with a positive. float64 has room for exp(|s_ij - s_ip|) <= exp(200)."""
    s = term.cosines / temperature
    others = term.candidates[:, None, :] & ~torch.eye(s.shape[1], dtype=torch.bool)
    pairs = torch.log1p(((s[:, None, :] - s[:, :, None]).exp() * others).sum(2))  # [R, p]
    count = term.positives.sum(1)
    return ((pairs * term.positives).sum(1)[count > 0] / count[count > 0]).mean()
