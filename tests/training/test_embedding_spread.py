"""What is measured of a step's embeddings, against the definitions, in one process and in two."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simclr_fast.config import Config
from simclr_fast.models import build_model
from simclr_fast.process import Process
from simclr_fast.training.embedding_spread import SAMPLE, EmbeddingSpread, has_batch_statistics
from tests.gloo_ranks import on_ranks
from tests.training.exactness import config

CPU = torch.device("cpu")
NORM = nn.BatchNorm1d(3)  # a model, as far as the measurement asks
TEMPERATURE = 0.2


def options(batch_size: int, micro_batch_size: int = 0, *, sync_bn: bool = True) -> Config:
    own = config("batch", micro_batch_size)
    optimization = dataclasses.replace(own.optimization, batch_size=batch_size, temperature=TEMPERATURE)
    return dataclasses.replace(own, optimization=optimization, model=dataclasses.replace(own.model, sync_bn=sync_bn))


def alone(z: Tensor, micro_batch_size: int = 0, model: nn.Module = NORM) -> dict[str, float]:
    return EmbeddingSpread(options(len(z) // 2, micro_batch_size), Process(0, 1, CPU), model).measure(z)


def by_definition(z: Tensor, groups: list[int]) -> dict[str, float]:
    """z [2b, D], view-major; groups: of the b images, whose batch statistics each shares."""
    images, unit = len(z) // 2, F.normalize(z.double(), dim=1)
    squares, near = [], {True: [], False: []}
    for i, j in itertools.product(range(2 * images), repeat=2):
        a, b = i % images, j % images
        if a != b:
            cosine = (unit[i] @ unit[j]).item()
            squares.append(cosine**2)
            near[groups[a] == groups[b]].append(math.exp(cosine / TEMPERATURE))
    mean = lambda values: sum(values) / len(values)
    return {
        "effective_dimension": 1 / mean(squares),
        "batch_norm_gap": math.log(mean(near[True])) - math.log(mean(near[False])),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_definition(dtype: torch.dtype) -> None:
    z = (torch.randn(24, 5) + torch.arange(24)[:, None] % 12 // 4).to(dtype)
    expected = by_definition(z, [k // 4 for k in range(12)])
    assert alone(z, 4) == pytest.approx(expected, rel=1e-4)
    assert abs(expected["batch_norm_gap"]) > 0.1
    assert (
        alone(z, 4, nn.GroupNorm(1, 3))
        == alone(z)
        == pytest.approx({"effective_dimension": expected["effective_dimension"]}, rel=1e-4)
    )


def test_dimensions_are_those_that_the_embeddings_lie_in() -> None:
    direction = torch.randn(1, 64)
    assert alone(direction.repeat(32, 1))["effective_dimension"] == pytest.approx(1)
    assert alone(direction * torch.randn(32, 1))["effective_dimension"] == pytest.approx(1), "both ways along a line"
    plane = F.pad(torch.randn(400, 2), (0, 62))
    assert alone(plane)["effective_dimension"] == pytest.approx(2, rel=0.1)
    assert alone(torch.randn(512, 64))["effective_dimension"] == pytest.approx(64, rel=0.1)


def test_extremes_have_values() -> None:
    assert alone(torch.randn(2, 8)) == {}, "one image has no other"
    zeros = alone(torch.zeros(8, 8), 2)
    assert math.isfinite(zeros["effective_dimension"])
    assert zeros["batch_norm_gap"] == 0
    z = torch.randn(16, 8)
    at = lambda t: dataclasses.replace(
        options(8, 2), optimization=dataclasses.replace(options(8, 2).optimization, temperature=t)
    )
    found = [EmbeddingSpread(at(t), Process(0, 1, CPU), NORM).measure(z)["batch_norm_gap"] for t in (1e-4, 0.1)]
    assert found[0] == found[1], "below 0.1, that of 0.1"
    assert math.isfinite(found[0])


def test_of_a_large_batch_a_sample_is_compared() -> None:
    z = torch.randn(2, 4 * SAMPLE, 3)
    first = alone(z[:, :SAMPLE].flatten(0, 1), 8)
    z[:, SAMPLE:] = torch.nan
    assert alone(z.flatten(0, 1), 8) == pytest.approx(first)


def test_frozen_statistics_and_other_norms_leak_nothing() -> None:
    assert [has_batch_statistics(build_model(config(norm).model, 1)) for norm in ("batch", "group", "frozen")] == [
        True,
        False,
        False,
    ]


def rows() -> Tensor:
    """Of 8 images, [2, 8, 5]; images 4 to 7 are unlike the others."""
    return torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(5)) + torch.arange(8)[:, None] // 4


def in_two_processes(rank: int, world: int) -> list[dict[str, float]]:
    own = rows()[:, 4 * rank : 4 * rank + 4].flatten(0, 1)
    shared = EmbeddingSpread(options(8 * SAMPLE), Process(rank, world, CPU), NORM)
    assert shared.images == SAMPLE // world, "as many of each process"
    settings = (options(8), options(8, sync_bn=False), options(8, 2), options(8, 2, sync_bn=False))
    return [EmbeddingSpread(each, Process(rank, world, CPU), NORM).measure(own) for each in settings]


def test_two_processes_measure_what_one_would(tmp_path: Path) -> None:
    first, second = on_ranks(in_two_processes, 2, tmp_path)
    assert first == second, "every process knows the values of all"
    z = rows().flatten(0, 1)
    groups = {
        "processes": [k // 4 for k in range(8)],
        "parts": [k % 4 // 2 for k in range(8)],
        "both": [k // 2 for k in range(8)],
    }
    dimension = {"effective_dimension": by_definition(z, groups["both"])["effective_dimension"]}
    expected = [dimension, *(by_definition(z, groups[name]) for name in ("processes", "parts", "both"))]
    for found, truth in zip(first, expected, strict=True):
        assert found == pytest.approx(truth, rel=1e-4)
