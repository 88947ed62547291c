"""What only a GPU has: AMP and compilation by default, the side stream, nvJPEG, a watch that keeps the queue full."""

import dataclasses
from pathlib import Path

import pytest
import torch

import train
from simclr_fast.config import DataOptions
from simclr_fast.data import build_loader, load_dataset
from simclr_fast.training.finite import LossWatch, NonFiniteLossError
from simclr_fast.training.metrics import read_metrics
from tests.data.conftest import write_image
from tests.streams import captured

pytestmark = pytest.mark.gpu
SMALL = ["demo", "--batch-size", "500", "--epochs", "2", "--no-eval", "--log-interval", "1"]


@pytest.mark.parametrize("extra", [[], ["--amp-dtype", "float16"], ["--micro-batch-size", "125"], ["--opt", "lars"]])
def test_training_reduces_the_loss(extra: list[str], tmp_path: Path) -> None:
    assert train.main([*SMALL, *extra, "--device", "cuda", "--output", str(tmp_path / "run")]) == 0
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 16
    assert losses[-1] < losses[0]


def test_profile_counts_the_work_on_the_device(tmp_path: Path, capsys) -> None:
    assert train.main([*SMALL, "--profile", "3", "--device", "cuda", "--output", str(tmp_path)]) == 0
    assert "loss + augmentation:" in capsys.readouterr().out


@pytest.mark.parametrize("decode_device", ["cpu", "cuda"])
def test_ragged_batches_arrive_whole(decode_device: str, tmp_path: Path) -> None:
    for i in range(40):
        write_image(tmp_path / f"{i:02d}.jpg", 40 + i, 60 - i, seed=i)
    options = DataOptions(dataset="imagefolder", data_dir=tmp_path, workers=2, decode_device=decode_device)
    source = load_dataset(options).train
    device = torch.device("cuda", 0)
    loader = build_loader(source, 10, seed=0, device=device, options=options)
    for batch in loader.epoch(0):
        for image, index in zip(batch.images, batch.indices.tolist()):
            expected = source.decoded(index).float()
            assert image.is_cuda
            assert (image.cpu().float() - expected).abs().mean() < (0.01 if decode_device == "cpu" else 2.0)


def test_watch_sees_a_bad_loss() -> None:
    watch = LossWatch()
    for value in (1.0, 2.0):
        watch.start(torch.tensor(value, device="cuda"))
        watch.finish()
    watch.start(torch.tensor(float("nan"), device="cuda"))
    with pytest.raises(NonFiniteLossError, match="nan"):
        watch.finish()


def test_step_replays_as_a_cuda_graph() -> None:
    """Views, forward pass, loss and backward pass in one graph: nothing in them waits for the host."""
    from simclr_fast import NTXentLoss
    from simclr_fast.models import build_model
    from simclr_fast.training.views import Views
    from tests.training.exactness import BATCH, config, images

    torch.manual_seed(0)
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
    torch.testing.assert_close(loss, expected_loss)
    assert (gradient() - expected).norm() < 1e-4 * expected.norm()


def test_micro_batches_are_exact() -> None:
    from simclr_fast import NTXentLoss
    from simclr_fast.models import build_model
    from simclr_fast.training.step import TrainStep
    from simclr_fast.training.views import Views
    from tests.training.exactness import BATCH, config, images

    def weights(micro_batch_size: int) -> torch.Tensor:
        torch.manual_seed(0)
        options = config("group")
        model = build_model(dataclasses.replace(options.model), channels=1).cuda()
        views = Views(options.augment, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = TrainStep(model, views, NTXentLoss(0.2), optimizer, micro_batch_size=micro_batch_size)
        torch.backends.cudnn.allow_tf32 = False
        for k in range(3):
            step(images().cuda(), views.draw(torch.arange(BATCH, device="cuda"), k), lr=0.1)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole, split = weights(0), weights(BATCH // 4)
    assert (whole - split).norm() < 1e-4 * whole.norm()
