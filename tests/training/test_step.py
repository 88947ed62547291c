"""The training step: micro-batches, processes, autocast and compilation compute what one plain pass computes."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simclr_fast import NTXentLoss, SimCLRAugment
from simclr_fast.config import AugmentOptions
from simclr_fast.models import build_model
from simclr_fast.training.step import TrainStep, frozen_running_statistics
from simclr_fast.training.views import Views
from tests.forked import CONTEXT
from tests.training.exactness import BATCH, config, images, run_rank, weights_after
from tests.training.processes import finish, free_port


def in_processes(options, world_size: int, tmp_path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    arguments = (world_size, options, dtype, environment, tmp_path / "weights.pt")
    processes = [CONTEXT.Process(target=run_rank, args=(rank, *arguments), daemon=True) for rank in range(world_size)]
    for process in processes:
        process.start()
    assert finish(processes) == [0] * world_size
    return torch.load(tmp_path / "weights.pt", weights_only=True)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest relative difference of a tensor, in the Euclidean norm."""
    assert a.keys() == b.keys()
    return max(
        ((a[k].double() - b[k].double()).norm() / b[k].double().norm().clamp_min(1e-3)).item()
        for k in a
        if a[k].is_floating_point()
    )


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_micro_batches_give_the_weights_of_the_whole_batch(norm: str) -> None:
    whole = weights_after(config(norm))
    assert distance(weights_after(config(norm, micro_batch_size=BATCH // 4)), whole) < 1e-5
    start = weights_after(config(norm), steps=0)
    assert distance(start, whole) > 1e-2, "the steps moved the weights"


@pytest.mark.parametrize("micro_batch_size", [0, BATCH // 4])
def test_two_processes_give_the_weights_of_one(micro_batch_size: int, tmp_path: Path) -> None:
    whole = weights_after(config("group"))
    assert distance(in_processes(config("group", micro_batch_size), 2, tmp_path), whole) < 1e-5


def test_two_processes_with_synchronised_batch_norm_give_the_weights_of_one(tmp_path: Path) -> None:
    # In float64: batch norm over so few samples turns float32 rounding into 1e-3 within five steps.
    whole = weights_after(config("batch"), dtype=torch.float64)
    assert distance(in_processes(config("batch"), 2, tmp_path, dtype=torch.float64), whole) < 1e-9


def test_unsynchronised_batch_norm_is_another_model(tmp_path: Path) -> None:
    options = config("batch")
    options = dataclasses.replace(options, model=dataclasses.replace(options.model, sync_bn=False))
    assert distance(in_processes(options, 2, tmp_path), weights_after(options)) > 1e-3


def test_micro_batches_update_running_statistics_once() -> None:
    model = weights_after(config("batch", micro_batch_size=BATCH // 2), steps=1)
    # Two micro-batches in one step: two updates, not four; with momentum 0.1 the start's share is 0.9^2 of 1.
    views = Views(config("batch").augment, seed=7)
    draw = views.draw(torch.arange(BATCH), 0, batch_size=BATCH)
    start = weights_after(config("batch"), steps=0)
    mean = start["backbone.bn1.running_mean"]
    for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
        x = nn.functional.conv2d(views.apply(images()[part], draw[part]), start["backbone.conv1.weight"], padding=1)
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(model["backbone.bn1.running_mean"], mean, rtol=1e-4, atol=1e-6)


def test_frozen_running_statistics_come_back_to_life() -> None:
    norm = nn.BatchNorm1d(3)
    x = torch.randn(8, 3) + 1
    with frozen_running_statistics(norm):
        norm(x)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))


def test_random_layers_draw_the_same_in_both_passes() -> None:
    """Dropout in the model: the gradient of micro-batches is that of the embeddings that the loss saw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 16))
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _module, _inputs, z: seen.append(z.detach().clone()))
    options = dataclasses.replace(config("group").augment, size=8)
    step = TrainStep(
        model,
        Views(options, seed=0),
        NTXentLoss(0.5),
        torch.optim.SGD(model.parameters(), lr=0.1, fused=True),
        micro_batch_size=4,
    )
    step(images(), step.views.draw(torch.arange(BATCH), 0, batch_size=BATCH), lr=0.1)
    assert len(seen) == 8
    for first, second in zip(seen[:4], seen[4:]):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_compiled_step_gives_the_eager_weights(micro_batch_size: int) -> None:
    eager = weights_after(config("group", micro_batch_size), steps=2)
    compiled = weights_after(config("group", micro_batch_size, torchcompile="aot_eager"), steps=2)
    assert distance(compiled, eager) < 1e-5


@pytest.mark.parametrize("micro_batch_size", [0, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_gradient(dtype: torch.dtype, micro_batch_size: int) -> None:
    def gradient(autocast: torch.dtype | None) -> Tensor:
        torch.manual_seed(0)
        model = build_model(config("group").model, channels=1)
        views = Views(config("group").augment, seed=0, dtype=autocast)
        step = TrainStep(
            model,
            views,
            NTXentLoss(0.2),
            torch.optim.SGD(model.parameters(), lr=0.1, fused=True),
            scaler=torch.amp.GradScaler("cpu", init_scale=64.0, enabled=autocast == torch.float16),
            autocast=autocast,
            micro_batch_size=micro_batch_size,
        )
        result = step(images(), views.draw(torch.arange(BATCH), 0, batch_size=BATCH), lr=0.1)
        assert result.z.dtype == (autocast or torch.float32)
        assert result.loss.dtype == torch.float32
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    exact, rounded = gradient(None), gradient(dtype)
    least = {torch.bfloat16: 0.9, torch.float16: 0.99}[dtype]  # 8 and 11 bits of precision, in a net at its start
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > least
    assert rounded.norm() == pytest.approx(exact.norm().item(), rel=0.1)
    assert not torch.equal(exact, rounded)


def test_overflow_in_float16_skips_the_update_and_lowers_the_scale() -> None:
    model = build_model(config("group").model, channels=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    step = TrainStep(
        model,
        Views(config("group").augment, seed=0, dtype=torch.float16),
        NTXentLoss(0.2),
        torch.optim.SGD(model.parameters(), lr=0.1, fused=True),
        scaler=scaler,
        autocast=torch.float16,
    )
    before = [p.detach().clone() for p in model.parameters()]
    result = step(images(), step.views.draw(torch.arange(BATCH), 0, batch_size=BATCH), lr=0.1)
    assert result.loss.isfinite()
    assert not result.grad_norm.isfinite()
    assert all(torch.equal(p, start) for p, start in zip(model.parameters(), before))
    assert scaler.get_scale() == 2.0**59


def test_no_graph_break_in_augmentation_and_loss() -> None:
    augment, loss = SimCLRAugment(16), NTXentLoss(0.1)
    pool = nn.AdaptiveAvgPool2d(4)

    def step(batch: Tensor, seed: Tensor, indices: Tensor) -> Tensor:
        z = pool(augment(batch, seed=seed, indices=indices)).flatten(1)
        return loss(*z.chunk(2))

    batch = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8)
    explained = torch._dynamo.explain(step)(batch, torch.tensor([5]), torch.arange(8))
    assert explained.graph_break_count == 0, explained.break_reasons
    assert explained.graph_count == 1


def test_channels_last_reaches_the_backbone() -> None:
    views = Views(AugmentOptions(size=16), seed=0, channels_last=True)
    batch = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    made = views.apply(batch, views.draw(torch.arange(4), 0))
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert not made.is_contiguous()
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    step = TrainStep(model, views, NTXentLoss(), torch.optim.SGD(model.parameters(), lr=0.1, fused=True))
    views.layout = torch.contiguous_format
    with pytest.raises(RuntimeError, match="must reach the backbone as torch.contiguous_format"):
        step._require_layout(made)


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_every_step_has_a_gradient_of_its_own(micro_batch_size: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16))
    views = Views(config("group").augment, seed=0)
    draw = views.draw(torch.arange(BATCH), 0, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    step = TrainStep(model, views, NTXentLoss(0.1), optimizer, micro_batch_size=micro_batch_size)
    step(images(), draw, lr=0.0)
    first = model[1].weight.grad.clone()
    step(images(), draw, lr=0.0)
    assert torch.equal(model[1].weight.grad, first)
    assert first.norm() > 0


@pytest.mark.parametrize("micro_batch_size", [0, 4])
def test_a_measured_step_tells_the_statistics_of_its_batch(micro_batch_size: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16))
    views = Views(config("group").augment, seed=0)
    draw = views.draw(torch.arange(BATCH), 0, batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    step = TrainStep(model, views, NTXentLoss(0.1), optimizer, micro_batch_size=micro_batch_size)
    plain, measured = (step(images(), draw, lr=0.0, measure=measure) for measure in (False, True))
    assert plain.statistics is None
    torch.testing.assert_close(measured.loss, plain.loss, rtol=1e-6, atol=0)
    u = nn.functional.normalize(plain.z, dim=1)
    logits = (u @ u.T / 0.1).fill_diagonal_(-torch.inf)
    positive = torch.arange(2 * BATCH).roll(BATCH)
    probability = logits.softmax(dim=1)[torch.arange(2 * BATCH), positive].mean()
    found = (logits.argmax(dim=1) == positive).float().mean()
    logit = logits[torch.arange(2 * BATCH), positive].mean()
    for value, expected in zip(measured.statistics, (found, logit, probability), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("scale", [None, 1024.0], ids=["unscaled", "scaled"])
def test_gradients_are_clipped_and_their_norm_before_is_told(scale: float | None) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 16))
    views = Views(config("group").augment, seed=0)
    draw = views.draw(torch.arange(BATCH), 0, batch_size=BATCH)
    before = model[1].weight.detach().clone()
    z = model(views.apply(images(), draw))
    gradients = torch.autograd.grad(NTXentLoss(0.1)(*z.chunk(2)), list(model.parameters()))
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    step = TrainStep(model, views, NTXentLoss(0.1), optimizer, scaler=scaler, clip_grad=1e-3)
    result = step(images(), draw, lr=1.0)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 1e-2
    torch.testing.assert_close(result.grad_norm, norm, rtol=1e-5, atol=0)
    moved = torch.sqrt((model[1].weight.detach() - before).square().sum() + model[1].bias.grad.square().sum())
    torch.testing.assert_close(moved, torch.tensor(1e-3), rtol=1e-3, atol=0)
