"""What only a GPU has: AMP and compilation by default, the side stream, nvJPEG, a step that waits for nothing."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from simclr_fast import NTXentLoss
from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.errors import ConfigError, NonFiniteLossError
from simclr_fast.models import build_model
from simclr_fast.optim import build_optimizer, set_learning_rate
from simclr_fast.training.average import WeightAverage
from simclr_fast.training.state import TrainState
from simclr_fast.training.step import TrainStep
from simclr_fast.training.views import Views
from simclr_fast.training.watch import StepWatch
from tests.data.conftest import pixels, save_image, write_image
from tests.streams import captured
from tests.training.exactness import BATCH, config, images
from tests.training.graph_runs import step_of

pytestmark = pytest.mark.gpu
SMALL = ["demo", "--batch-size", "500", "--epochs", "2", "--no-eval", "--log-interval", "1", "--device", "cuda"]
STEPS_PER_EPOCH = 8


@pytest.fixture(autouse=True)
def _float32_products() -> Iterator[None]:
    """No TensorFloat-32, which training switches on for the whole process and whose errors hide what is compared.

    Not by monkeypatch: from pytest 9.2 on it ends with deleting what an object computes, as torch does these.
    """
    kinds = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before):
        kind.allow_tf32 = allowed


@pytest.fixture
def train_main() -> Callable[[list[str]], int]:
    for package in ("tyro", "rich", "tqdm", "tensorboard", "mlxtend"):
        pytest.importorskip(package, reason=f"pretrain demo needs the package {package}")
    from simclr_fast.cli import main

    return lambda arguments: main(["pretrain", *arguments])


# The demo's learning rate is that of AdamW: LARS, whose steps are a thousandth of the weights, would stand still by it.
@pytest.mark.parametrize(
    "extra",
    [[], ["--amp-dtype", "float16"], ["--micro-batch-size", "125"], ["--opt", "lars", "--lr", "10"]],
)
def test_training_reduces_the_loss(extra: list[str], train_main: Callable[[list[str]], int], tmp_path: Path) -> None:
    from simclr_fast.run_files import read_metrics

    assert train_main([*SMALL, *extra, "--output", str(tmp_path / "run")]) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 2 * STEPS_PER_EPOCH
    first, last = losses[:STEPS_PER_EPOCH], losses[STEPS_PER_EPOCH:]
    assert sum(last) < sum(first)


def test_profile_counts_the_work_on_the_device(train_main: Callable[[list[str]], int], tmp_path: Path, capsys) -> None:
    assert train_main([*SMALL, "--profile", "3", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "loss + augmentation:" in said
    assert "\nidle " in said
    assert "\nThe run is bound by " in said


def ragged_loader(folder: Path, decode_device: str):
    """The source of a folder of images, and a loader of batches of 10 from it."""
    options = DataOptions(dataset="imagefolder", data=folder, workers=2, decode_device=decode_device)
    source = load_dataset(options).train
    return source, build_loader(source, 10, seed=0, device=torch.device("cuda", 0), options=options)


def test_ragged_batches_arrive_whole(tmp_path: Path) -> None:
    for i in range(40):
        write_image(tmp_path / f"{i:02d}.jpg", 40 + i, 60 - i, seed=i)
    source, loader = ragged_loader(tmp_path, "cpu")
    for batch in loader.epoch(0):
        assert batch.indices.is_cuda
        for image, index in zip(batch.images, batch.indices.tolist()):
            assert image.is_cuda
            assert torch.equal(image.cpu(), source.decoded(index))


def test_nvjpeg_decodes_what_it_can_and_counts_the_rest(tmp_path: Path) -> None:
    for i in range(39):
        write_tinted(tmp_path / f"{i:02d}.jpg", 40 + i, 60 - i, seed=i)
    write_image(tmp_path / "39.png", 50, 40, seed=39)
    try:
        source, loader = ragged_loader(tmp_path, "cuda")
    except ConfigError as error:
        if error.__cause__ is not None:  # torchcodec is missing, which the report of the tests tells
            raise
        pytest.skip(f"torchcodec has no working nvJPEG here: {error}")
    for batch in loader.epoch(0):
        for image, index in zip(batch.images, batch.indices.tolist()):
            assert image.is_cuda
            assert (image.cpu().float() - source.decoded(index).float()).abs().mean() < 2.0
    assert loader.gpu_decode_fallbacks == 1
    assert len(loader.bad) == 0


def write_tinted(path: Path, height: int, width: int, seed: int) -> None:
    """A smooth grey picture under one tint: decoders differ in how they enlarge the colours' smaller planes."""
    gray = torch.from_numpy(pixels(1, 1, 4, 4, seed=seed)).float() / 2
    smooth = torch.nn.functional.interpolate(gray, (height, width), mode="bilinear")[0]
    tint = torch.from_numpy(pixels(3, 1, 1, seed=seed + 100)).float() / 2
    save_image(path, (smooth + tint).to(torch.uint8))


def test_watch_tells_of_a_bad_loss_one_step_later() -> None:
    watch = StepWatch(torch.device("cuda"))
    norm = torch.ones((), device="cuda")
    for value in (1.0, 2.0, float("nan")):
        watch.judge(torch.tensor(value, device="cuda"), norm, scaled=False)
        watch.note()
    watch.judge(torch.tensor(3.0, device="cuda"), norm, scaled=False)
    assert watch.skip.item() == 1, "nothing is applied any more"
    with pytest.raises(NonFiniteLossError, match="the loss is nan"):
        watch.note()


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_a_step_waits_for_nothing(opt: str, autocast: torch.dtype | None) -> None:
    options = config("batch", opt=opt)
    options = dataclasses.replace(
        options, optimization=dataclasses.replace(options.optimization, model_ema=True, clip_grad=1.0)
    )
    device = torch.device("cuda", 0)
    state = TrainState.create(options, 1, device, autocast=autocast)
    views = Views(options.augment, seed=0, dtype=autocast)
    step = step_of(state, views, options, autocast)
    batch, indices = images().cuda(), torch.arange(BATCH, device="cuda")
    take = lambda k: step(batch, views.draw(indices, k), lr=0.01)
    for k in range(3):  # kernels are loaded, and the optimizer makes its state
        take(k)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for k in range(3, 6):
            take(k)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    step.settle()


@pytest.mark.parametrize("opt", ["lars", "sgd", "adamw"])
def test_optimizers_make_the_updates_of_the_cpu(opt: str) -> None:
    """In float64 on the CPU: the fused kernels of both, skipped steps and the average included."""
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        torch.manual_seed(0)
        options = config("group", opt=opt)
        model = build_model(options.model, channels=1).to(device, dtype).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, options.optimization)
        average = WeightAverage(model, 0.9)
        optimizer.found_inf = torch.zeros((), device=device)
        for k in range(6):
            set_learning_rate(optimizer, 0.05 / (k + 1))
            optimizer.found_inf.fill_(float(k == 3))
            for i, p in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * k + i)
                value = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.grad = torch.empty_like(p).copy_(value if k != 3 else value * torch.nan)
            optimizer.step()
            average.update_parameters(model, skip=optimizer.found_inf)
        results.append([t.detach().cpu().double() for t in (*model.parameters(), *average.module.parameters())])
    for exact, made in zip(*results, strict=True):
        torch.testing.assert_close(made, exact, rtol=1e-4, atol=1e-5)


def test_step_replays_as_a_cuda_graph() -> None:
    """Views, forward pass, loss and backward pass in one graph: nothing in them waits for the host."""
    options = config("group")
    model = build_model(options.model, channels=1).cuda()
    views, criterion = Views(options.augment, seed=0), NTXentLoss(0.2)
    batch, draw = images().cuda(), views.draw(torch.arange(BATCH, device="cuda"), 0)

    def compute() -> torch.Tensor:
        loss = criterion(*model(views.apply(batch, draw)).chunk(2))
        loss.backward()
        return loss.detach()

    def gradient() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    expected_loss, expected = compute(), gradient()

    def afresh() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        return compute()

    graph, loss = captured(afresh)
    for p in model.parameters():
        p.grad.zero_()
    graph.replay()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert (gradient() - expected).norm() < 1e-4 * expected.norm()


def test_micro_batches_are_exact() -> None:
    def weights(micro_batch_size: int) -> torch.Tensor:
        torch.manual_seed(0)
        options = config("group")
        model = build_model(dataclasses.replace(options.model), channels=1).cuda()
        views = Views(options.augment, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        step = TrainStep(model, views, NTXentLoss(0.2), optimizer, micro_batch_size=micro_batch_size)
        for k in range(3):
            step(images().cuda(), views.draw(torch.arange(BATCH, device="cuda"), k), lr=0.1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole, split = weights(0), weights(BATCH // 4)
    assert (whole - split).norm() < 1e-4 * whole.norm()
