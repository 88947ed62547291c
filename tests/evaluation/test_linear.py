"""Linear classifiers: L-BFGS against scikit-learn, the choice on held-out images, SGD probes over a frozen encoder."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from simclr_fast.data import EncodedImages, ImageArrays
from simclr_fast.data.loading import StoredLoader
from simclr_fast.evaluation import penalty_sweep
from simclr_fast.evaluation.features import LabelledBatches
from simclr_fast.evaluation.linear import Probe, Standardize, best_probe, train_probes
from simclr_fast.evaluation.penalty_sweep import sweep_linear
from simclr_fast.evaluation.probes import LinearClassifier, fit_linear, standardize
from simclr_fast.evaluation.protocols import PROTOCOLS, Protocol
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import accuracy
from simclr_fast.optim import lr_at
from simclr_fast.process import Process
from tests.data.test_resident import stored
from tests.evaluation.conftest import linear_accuracy

CPU = Process(0, 1, torch.device("cpu"))


def clusters(count: int, spread: float, classes: int = 4, features: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(classes).repeat(count // classes)
    return torch.eye(classes, features)[labels] + spread * torch.randn(len(labels), features), labels


@pytest.mark.parametrize("penalty_c", [0.01, 1.0])
def test_lbfgs_finds_the_optimum_of_scikit_learn(penalty_c: float) -> None:
    features, labels = clusters(80, spread=0.5)
    ours = fit_linear(features, labels, penalty_c)
    theirs = LogisticRegression(C=penalty_c, max_iter=5000, tol=1e-8).fit(features.double().numpy(), labels.numpy())
    torch.testing.assert_close(ours.weight.double(), torch.from_numpy(theirs.coef_), atol=2e-3, rtol=0)
    intercept = torch.from_numpy(theirs.intercept_)
    torch.testing.assert_close(
        (ours.bias - ours.bias.mean()).double(), intercept - intercept.mean(), atol=2e-3, rtol=0
    )  # a common shift of all biases changes nothing


@pytest.mark.parametrize("penalty_c", [0.0, -1.0, float("nan")])
def test_a_penalty_that_is_none_is_refused(penalty_c: float) -> None:
    with pytest.raises(ValueError, match=f"penalty_c={penalty_c}: pass a number > 0"):
        fit_linear(*clusters(8, spread=0.5), penalty_c)


def test_standardize_uses_the_first_set_and_spares_constant_columns() -> None:
    train, test = torch.randn(200, 5) * torch.tensor([1.0, 5, 2, 1, 0]) + 3, torch.randn(10, 5)
    scaled, other = standardize(train, test)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled[:, :4].std(dim=0), torch.ones(4))
    rows = [F.normalize(part, dim=1) for part in (train, test)]
    expected = (rows[1][:, 0] - rows[0][:, 0].mean()) / rows[0][:, 0].std()
    torch.testing.assert_close(other[:, 0], expected)
    blank, _ = standardize(torch.cat([torch.randn(50, 3), torch.zeros(50, 1)], dim=1), torch.zeros(1, 4))
    assert blank.isfinite().all()


def test_sweep_chooses_on_the_held_out_part() -> None:
    # Labels are noise: the strongest penalty, which predicts nearly nothing, cannot be told from the weakest by the
    # training images (which it could learn by heart), only by held-out ones.
    features, labels = clusters(400, spread=1.0, classes=2, features=150)
    sweep = sweep_linear(features, labels, (1e-3, 1e3), held_out=0.25, seed=0, device=torch.device("cpu"))
    assert sweep.penalty_c == 1e-3
    assert 0.5 < sweep.held_out_accuracy < 1.0
    refitted = fit_linear(features, labels, 1e-3)
    torch.testing.assert_close(sweep.classifier.weight, refitted.weight, atol=1e-4, rtol=0)


def test_the_papers_grid_finds_the_optima_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each penalty of the path from the optimum of a stronger one; C is 1 / penalty there. Of equals the strongest."""
    features, labels = clusters(240, spread=1.5, classes=3, features=5)  # they overlap: every optimum is finite
    calls: list[tuple[float, LinearClassifier | None, LinearClassifier]] = []

    def recorded(x, y, penalty_c, *, start=None, **options):
        calls.append((penalty_c, start, fit_linear(x, y, penalty_c, start=start, **options)))
        return calls[-1][-1]

    monkeypatch.setattr(penalty_sweep, "fit_linear", recorded)
    grid = PROTOCOLS["linear"]["simclr"].values["penalty_c"]
    np.testing.assert_allclose(grid, 1 / np.logspace(5, -6, 45))
    sweep = sweep_linear(features, labels, grid[::-1], held_out=0.25, seed=0)
    path, refit = calls[:-1], calls[-1]
    fitted = {c: found for c, _, found in path}
    assert [c for c, _, _ in path] == list(grid), "the strongest penalty, which is the smallest C, comes first"
    assert [start for _, start, _ in path] == [None, *list(fitted.values())[:-1]]
    kept, held_out = hold_out(labels, 0.25, seed=0)
    for c in (grid[4], grid[20], grid[32], grid[44]):
        theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-9).fit(features[kept].double().numpy(), labels[kept])
        torch.testing.assert_close(fitted[c].weight.double(), torch.from_numpy(theirs.coef_), atol=2e-3, rtol=0)
    scores = {c: accuracy(found.logits(features[held_out]), labels[held_out]) for c, found in fitted.items()}
    assert sweep.held_out_accuracy == max(scores.values())
    assert sweep.penalty_c == next(c for c in grid if scores[c] == sweep.held_out_accuracy)
    assert refit == (sweep.penalty_c, fitted[sweep.penalty_c], sweep.classifier)


@pytest.mark.parametrize("penalty_c", [1e4, 1e6])
def test_the_weakest_penalties_reach_their_optimum(penalty_c: float) -> None:
    """Three classes that overlap, but nearly lie apart: the objective is flat around its lowest point."""
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(3, 8, generator=generator), torch.arange(80) % 3
    features = centres[labels] + torch.randn(80, 8, generator=generator)
    theirs = LogisticRegression(C=penalty_c, solver="newton-cg", max_iter=10_000, tol=1e-10)
    largest = np.abs(theirs.fit(features.double().numpy(), labels).coef_).max()
    assert theirs.score(features, labels) < 1.0
    fitted = fit_linear(features, labels, penalty_c)
    assert fitted.weight.dtype == torch.float32
    assert fitted.weight.abs().max().item() == pytest.approx(largest, rel=1e-3)


def test_one_penalty_holds_nothing_out() -> None:
    features, labels = clusters(80, spread=0.5)
    sweep = sweep_linear(features, labels, (0.1,), held_out=0.25, seed=0)
    assert (sweep.penalty_c, sweep.held_out_accuracy) == (0.1, None)
    torch.testing.assert_close(sweep.classifier.weight, fit_linear(features, labels, 0.1).weight)


def test_linear_accuracy_is_that_of_the_test_set() -> None:
    train, labels = clusters(80, spread=0.1)
    test, truth = clusters(40, spread=0.1)
    assert linear_accuracy(train, labels, test, truth) == 1.0
    assert linear_accuracy(train, labels, test, (truth + 1) % 4) == 0.0


@pytest.fixture
def batches(run_folder) -> LabelledBatches:
    labels = torch.arange(2).repeat(24)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, 30, 220) + torch.randint(0, 20, (48, 1, 28, 28))
    return LabelledBatches(ImageArrays(images.byte(), labels), 16, Run.open(run_folder), seed=0, process=CPU)


def test_probes_move_neither_parameters_nor_batch_norm_statistics(run_folder, batches: LabelledBatches) -> None:
    encoder = Run.open(run_folder).encoder().train()  # a caller that forgot eval mode
    before = copy.deepcopy(encoder.state_dict())
    train_probes(encoder, 128, batches, 2, steps=6, lr_base=(0.1,), protocol=Protocol({}))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("protocol", ["own", "lightly", "solo-learn"])
def test_probes_are_what_torch_sgd_trains(protocol: str, run_folder, batches: LabelledBatches) -> None:
    """By a cosine with and without Nesterov's momentum, and by steps of torch's MultiStepLR."""
    encoder = Run.open(run_folder).encoder()
    steps, lr_base = 5, (0.1, 1.0)
    rule = PROTOCOLS["linear"][protocol]
    probes = train_probes(encoder, 128, batches, 2, steps=steps, lr_base=lr_base, protocol=rule)
    for probe, lr in zip(probes, lr_base):
        head = nn.Linear(128, 2)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=lr * 16 / 256, momentum=0.9, nesterov=protocol == "own")
        # In 5 steps, 60 and 80 of 100 epochs are after 3 and 4.
        drops = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4], gamma=0.1)
        for step, (images, labels) in enumerate(batches.steps(steps)):
            if protocol != "solo-learn":
                optimizer.param_groups[0]["lr"] = lr_at(step, lr * 16 / 256, steps, 0)
            optimizer.zero_grad()
            with torch.no_grad():
                features = encoder(images)
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
            if protocol == "solo-learn":
                drops.step()
        assert probe.lr_base == lr
        torch.testing.assert_close(probe.classifier.weight, head.weight.detach())
        torch.testing.assert_close(probe.classifier.bias, head.bias.detach())


def test_best_probe_is_chosen_by_accuracy() -> None:
    features, truth = clusters(40, spread=0.1)
    right = LinearClassifier(torch.eye(4, 12), torch.zeros(4))
    wrong = LinearClassifier(-right.weight, right.bias)
    best, score = best_probe([Probe(0.1, wrong), Probe(0.3, right), Probe(1.0, wrong)], features, truth)
    assert (best.lr_base, score) == (0.3, 1.0)


def test_batches_depend_on_the_seed_alone(run_folder) -> None:
    source = ImageArrays(torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20))
    make = lambda seed: LabelledBatches(source, 8, Run.open(run_folder), seed, CPU)
    first, again, other = (list(make(seed).steps(5)) for seed in (0, 0, 1))
    assert len(first) == 5
    assert first[0][0].shape == (8, 1, 28, 28)
    assert all(torch.equal(a, b) for pair in zip(first, again) for a, b in zip(*pair))
    assert not torch.equal(first[0][1], other[0][1])
    epoch = torch.cat([labels for _, labels in first[:2]])
    assert len(epoch.unique()) == 16  # no image twice within an epoch
    crops: dict[int, list[torch.Tensor]] = {}
    for images, labels in first:
        for image, label in zip(images, labels.tolist()):
            crops.setdefault(label, []).append(image)
    repeated = [views for views in crops.values() if len(views) > 1]
    assert repeated
    assert not any(torch.equal(*views[:2]) for views in repeated), "every epoch has its own crops"


def test_processes_share_the_batches_of_one(run_folder) -> None:
    """Each image with the views that it has in one process."""
    source = ImageArrays(torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20))
    of_rank = lambda rank, count: LabelledBatches(source, 8, Run.open(run_folder), 3, Process(rank, count, CPU.device))
    for whole, *parts in zip(*(of_rank(*of).steps(4) for of in ((0, 1), (0, 2), (1, 2)))):
        images, labels = (torch.cat(part) for part in zip(*parts))
        assert len(parts[0][1]) == len(parts[1][1]) == 4
        assert labels.sort().values.tolist() == whole[1].sort().values.tolist()
        torch.testing.assert_close(images[labels.argsort()], whole[0][whole[1].argsort()])


def test_batches_need_no_more_of_this_device_than_it_has(run_folder, tmp_path: Path) -> None:
    """The run may have held its images on another device, or decoded them there."""
    run = Run.open(run_folder)
    data = dataclasses.replace(run.config.data, resident="on", decode_device="cuda", workers=1)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
    held = dataclasses.replace(stored(tmp_path, 20), labels=torch.arange(20))
    assert isinstance(LabelledBatches(held, 8, run, 0, CPU).loader, StoredLoader)
    encoded = EncodedImages(20, lambda index: b"", str, labels=torch.arange(20))
    assert LabelledBatches(encoded, 8, run, 0, CPU).steps_per_epoch == 2


def test_standardized_features_stay_linear() -> None:
    features = torch.randn(100, 3) * torch.tensor([5.0, 0.1, 0]) + 2
    scaled = Standardize(features)(features)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled[:, :2].std(dim=0), torch.ones(2))
    assert scaled.isfinite().all()
