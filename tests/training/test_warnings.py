"""Early warnings: real runs that go wrong in each way say so once, and good ones say nothing."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simclr_fast.api import pretrain
from simclr_fast.checkpoint import checkpoints
from simclr_fast.cli import main
from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, ImageArrays, load_dataset
from simclr_fast.recipes import RECIPES
from simclr_fast.run_files import METRICS_FILE, read_metrics
from simclr_fast.training import pretrain as pretrain_module
from simclr_fast.training.warnings import EARLIEST, EASY_LINES, EASY_STEPS, LATEST, WINDOW, EarlyWarning, EarlyWarnings
from tests.data.conftest import write_image
from tests.training.processes import run

TINY = ("demo", "--size", "8", "--head-hidden", "32", "--threads", "1", "--no-eval", "--knn-epochs", "0")
TINY += ("--log-interval", "1")
UNCHANGED = ("--scale", "1", "1", "--ratio", "1", "1", "--rotate", "0", "--shear", "0", "--jitter", "0", "0", "0", "0")

Train = Callable[..., dict[str, int]]


def digits(count: int = 128) -> Tensor:
    return load_dataset(DataOptions(dataset="mnist5k")).train.images[:count]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains on images by options in tmp_path / "run"; returns the step of each warning by its kind."""

    def trained(images: Tensor, *options: str) -> dict[str, int]:
        monkeypatch.setattr(pretrain_module, "load_dataset", lambda _: Dataset(train=ImageArrays(images)))
        assert main(["pretrain", *TINY, *options, "--output", str(tmp_path / "run")]) == 0
        return warned(tmp_path / "run")

    return trained


def warned(folder: Path) -> dict[str, int]:
    """Step of each warning in a run's metrics by its kind, which comes once."""
    lines = [line for line in read_metrics(folder / METRICS_FILE) if "warning" in line]
    found = {line["warning"]: line["step"] for line in lines}
    assert len(found) == len(lines)
    return found


def said(text: str) -> list[str]:
    """The warnings on a console, each of which is one line."""
    return re.findall(r"^warning: (.*)$", text, flags=re.MULTILINE)


def test_identical_views(train: Train, capsys) -> None:
    assert train(digits(32), "--batch-size", "16", "--epochs", "2", *UNCHANGED) == {"identical views": 1}
    (line,) = said(capsys.readouterr().out)
    assert "(the mean cosine of their embeddings is 1.0000)" in line
    assert "--scale (now 1)" in line


def test_views_that_are_too_much_alike(train: Train, capsys) -> None:
    weak = (*UNCHANGED, "--rotate", "1")
    assert train(digits(64), "--batch-size", "64", "--epochs", "4", *weak) == {"identical views": EASY_LINES}
    assert "too much alike (an untrained encoder finds" in said(capsys.readouterr().out)[0]


def test_micro_batches_that_batch_norm_leaks_through(train: Train, capsys) -> None:
    leaking = ("--batch-size", "16", "--epochs", "3")
    assert train(digits(32), *leaking, "--micro-batch-size", "4") == {"batch norm": WINDOW}
    assert "--micro-batch-size (now 4), or --norm group" in said(capsys.readouterr().out)[0]
    assert train(digits(32), *leaking, "--micro-batch-size", "4", "--norm", "group") == {}, "the remedy helps"


def test_processes_that_batch_norm_leaks_through(tmp_path: Path) -> None:
    for i in range(16):
        write_image(tmp_path / "data" / f"{i:02d}.png", 12, 12, seed=i)
    options = ("photos", "--data", str(tmp_path / "data"), "--workers", "0", "--model", "resnet_mini", "--size", "8")
    options += ("--batch-size", "8", "--epochs", "3", "--warmup-epochs", "1", "--no-eval", "--log-interval", "1")
    options += ("--threads", "1", "--no-sync-bn", "--output", str(tmp_path / "run"))
    run(options, tmp_path / "log", 2)
    assert warned(tmp_path / "run") == {"batch norm": WINDOW}
    (line,) = said((tmp_path / "log").read_text())
    assert "Pass --sync-bn, or" in line


def test_a_learning_rate_that_is_too_high_for_what_was_learnt(train: Train, tmp_path: Path, capsys) -> None:
    usual = ("--batch-size", "32", "--epochs", "12", "--temperature", "0.2")
    usual += ("--scale", "0.6", "1", "--jitter", "0.4", "0.4", "0", "0")
    assert train(digits(), *usual) == {}, "a good run"
    assert said(capsys.readouterr().out) == []
    (tmp_path / "run").rename(tmp_path / "good")
    too_high = ("--pretrained", str(checkpoints(tmp_path / "good")[-1]), "--lr", "0.5", "--warmup-epochs", "10")
    (kind,) = found = train(digits(), *usual, *too_high)
    assert kind == "learning rate"
    assert WINDOW < found[kind] <= 12
    assert "lower --lr (its peak is 0.5)" in said(capsys.readouterr().out)[0]


def test_a_learning_rate_that_is_too_high_from_the_start(train: Train) -> None:
    found = train(digits(), "--batch-size", "32", "--epochs", "8", "--opt", "sgd", "--lr", "30")
    assert found.keys() <= {"learning rate", "collapse"}
    assert len(found) == 1, "what follows is not told"


def test_images_that_are_all_the_same_collapse(train: Train, capsys) -> None:
    images = digits(1).repeat(32, 1, 1, 1)
    assert train(images, "--batch-size", "8", "--epochs", "26", "--norm", "group") == {"collapse": EARLIEST}
    assert "or the images are all the same: look at views.png" in said(capsys.readouterr().out)[0]


def test_views_with_nothing_in_common_stay_at_chance(train: Train, capsys) -> None:
    noise = torch.randint(0, 256, (32, 1, 9, 9), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    small = ("--scale", "0.02", "0.02")
    assert train(noise, "--batch-size", "8", "--epochs", "26", *small) == {"chance": EARLIEST}
    assert "--scale, now 0.02" in said(capsys.readouterr().out)[0]


def test_a_call_says_it_and_so_does_a_run_that_goes_on(train: Train, tmp_path: Path, capsys) -> None:
    leaking = {"batch_size": 16, "micro_batch_size": 4}
    train(digits(64), "--batch-size", "16", "--micro-batch-size", "4", "--epochs", "2")
    assert len(said(capsys.readouterr().out)) == 1
    tiny = {"size": 8, "head_hidden": 32, "threads": 1, "eval": False, "knn_epochs": 0, "log_interval": 1}
    pretrain("demo", output=tmp_path / "run", epochs=4, warmup_epochs=1, resume="auto", **tiny, **leaking)
    assert len(said(capsys.readouterr().out)) == 1
    lines = [line for line in read_metrics(tmp_path / "run" / METRICS_FILE) if "warning" in line]
    assert [line["step"] for line in lines] == [WINDOW, 8 + WINDOW]


CHANCE, TEMPERATURE = 5.541, 0.2  # of 128 images
AT_CHANCE = {"loss": CHANCE, "contrastive_accuracy": 1 / 255}
GOOD = {
    "loss": 4.0,
    "chance": CHANCE,
    "contrastive_accuracy": 0.3,
    "positive_logit": 0.7 / TEMPERATURE,
    "temperature": TEMPERATURE,
    "grad_norm": 3.0,
    "effective_dimension": 12.0,
}


def told(
    lines: list[dict[str, float]], *, first: int = 1, begun: int = 0, warmup_steps: int = 31, **optimization: float
) -> dict[int, EarlyWarning]:
    """The warnings, by their steps, of a run of the demo that goes on behind step `begun`, with a line each step."""
    options = dataclasses.replace(RECIPES["demo"].optimization, **({"batch_size": 128} | optimization))
    config = dataclasses.replace(RECIPES["demo"], optimization=options)
    found = EarlyWarnings(config, step=begun, warmup_steps=warmup_steps)
    looked = {step: found.look(step, GOOD | line) for step, line in enumerate(lines, start=first)}
    return {step: warning for step, warning in looked.items() if warning is not None}


def kinds(lines: list[dict[str, float]], **options: float) -> dict[str, int]:
    """The steps of the warnings that `told` gives, by their kinds."""
    return {warning.kind: step for step, warning in told(lines, **options).items()}


def test_exploding_gradients_are_told_while_the_loss_is_still_below_chance() -> None:
    usual, exploding = {"grad_norm": 3.0}, {"grad_norm": 31.0, "loss": 4.9}
    assert kinds([usual] * 20 + [exploding] * 9) == {"learning rate": 25}
    assert kinds([usual] * 20 + [exploding | {"grad_norm": 29.0}] * 9) == {}, "ten times, not less"
    assert kinds([usual] * 20 + [exploding | {"loss": 4.0}] * 9) == {}, "with a loss that rises"
    assert kinds([usual] * 20 + [exploding] * 9, batch_size=8, temperature=0.1) == {}, "more than losses vary"
    overflow = exploding | {"grad_norm": float("inf")}
    assert kinds([usual] * 20 + [overflow] * 9) == {}, "float16 looks for its scale"


def test_one_line_is_chance() -> None:
    bad = {"loss": 9.0, "grad_norm": 99.0, "effective_dimension": 1.0, "batch_norm_gap": 1.0}
    assert kinds([{"batch_norm_gap": 0.0}, *[{"batch_norm_gap": 0.0}] * 9, bad] * 9) == {}


def test_loss_at_chance_is_told_after_the_warm_up_and_a_long_one_is_not_waited_for() -> None:
    chance = [AT_CHANCE] * 2500
    assert kinds(chance, warmup_steps=31) == {"chance": EARLIEST}
    assert kinds(chance, warmup_steps=300) == {"chance": 300}
    assert kinds(chance, warmup_steps=9999) == {"chance": LATEST}
    below = CHANCE - 0.021 / TEMPERATURE
    assert kinds([AT_CHANCE | {"loss": below}] * 200) == {}
    assert kinds([*chance[:90], *[AT_CHANCE | {"loss": below}] * 6, *chance[:300]], warmup_steps=99) == {"chance": 101}


def test_a_collapse_is_told_at_once_where_embeddings_were_spread() -> None:
    collapsed = AT_CHANCE | {"effective_dimension": 1.2}
    assert kinds([collapsed] * 200) == {"collapse": EARLIEST}, "which may be how it begins"
    assert kinds([AT_CHANCE, *[collapsed] * 200]) == {"collapse": 1 + WINDOW}
    assert kinds([{}] * 9 + [collapsed | {"loss": 4.0}] * 200) == {}, "with a loss that tells more than two apart"
    assert kinds([{}] * 9 + [collapsed | {"contrastive_accuracy": 0.2}] * 200) == {}, "or finds the pairs"


def test_what_follows_from_a_cause_is_not_told() -> None:
    diverged = AT_CHANCE | {"effective_dimension": 1.2}
    drifted = [diverged | {"loss": CHANCE + 0.05}] * 30 + [diverged | {"loss": CHANCE + 0.5}] * 170
    assert kinds(drifted) == {"collapse": EARLIEST}, "images that are all the same: nothing was learnt and lost"
    assert kinds([{}] * 9 + [diverged] * 200) == {"learning rate": 9 + WINDOW}
    assert kinds([AT_CHANCE | {"batch_norm_gap": 0.5}] * 200) == {"batch norm": WINDOW}


def test_only_an_untrained_encoder_is_not_to_find_all_pairs() -> None:
    easy = [{"contrastive_accuracy": 0.97}] * 9
    assert kinds(easy) == {"identical views": EASY_LINES}
    assert kinds(easy, first=501, begun=500) == {}
    assert kinds([{}, *easy]) == {}, "not from the start"
    same = {"contrastive_accuracy": 1.0, "positive_logit": 0.9995 / TEMPERATURE}
    assert kinds([same] * 9, first=501, begun=500) == {"identical views": 501}
    assert kinds([{}, *[same] * 9]) == {}, "a few images that are learnt by heart"
    assert kinds(easy, first=EASY_STEPS + 1) == {}, "the lines of a long interval are of a trained encoder"
    assert kinds(easy, batch_size=32) == {}, "32 photographs may all be very different"
    assert kinds([same | {"contrastive_accuracy": 0.0}] * 9) == {}, "all images are alike, not the views of one"


def run_at(temperature: float, losses: list[float], accuracies: list[float]) -> list[dict[str, float]]:
    """Lines of 64 images, each loss and accuracy of which comes 12 times."""
    of_all = {"temperature": temperature, "positive_logit": 0.1 / temperature, "chance": math.log(127)}
    return [
        of_all | {"loss": loss, "contrastive_accuracy": accuracy}
        for loss, accuracy in zip(losses, accuracies)
        for _ in range(12)
    ]


def test_a_low_temperature_begins_above_chance_and_learns_from_there() -> None:
    """The demo's own curves, of 64 images."""
    losses = [47.5, 58.0, 50.9, 53.5, 55.2, 50.1, 55.7, 45.6, 49.5, 45.5, 37.8, 39.8, 42.7, 36.6, 35.2, 29.8, 31.4]
    found = [0.008, 0.008, 0.04, 0.03, 0.03, 0.02, 0.05, 0.04, 0.06, 0.08, 0.09, 0.09, 0.05, 0.06, 0.06, 0.11, 0.08]
    coldest = run_at(0.01, losses, found)
    assert kinds(coldest, batch_size=64, temperature=0.01) == {}
    losses = [10.1, 12.2, 11.2, 10.9, 11.3, 10.5, 11.5, 10.6, 10.3, 9.6, 8.8, 8.2, 8.2, 7.2, 6.0, 6.4, 7.4]
    cold = run_at(0.05, losses, found)
    assert kinds(cold, batch_size=64, temperature=0.05) == {}
    stuck = run_at(0.05, [10.1] * 200, [0.03] * 200)
    assert kinds(stuck, batch_size=64, temperature=0.05) == {"chance": LATEST}, "an untrained encoder finds as many"
    assert kinds(stuck, batch_size=64, temperature=0.05, first=501, begun=500) == {}, "what it began with is unknown"
    lost = run_at(0.05, [4.0, 4.0, 7.0, 7.0], [0.2, 0.2, 0.008, 0.008])
    assert kinds(lost, batch_size=64, temperature=0.05).keys() == {"learning rate"}
    assert kinds(run_at(0.05, [4.0, 7.0], [0.2, 0.2]), batch_size=64, temperature=0.05) == {}, "it finds as many"


def test_no_loss_of_two_images_is_below_chance_by_what_is_asked_of_many_at_a_low_temperature() -> None:
    learnt = {"temperature": 0.01, "loss": 0.3, "chance": math.log(3), "contrastive_accuracy": 0.6}
    assert kinds([learnt] * 300, batch_size=2, temperature=0.01) == {}


def test_single_losses_of_two_images_are_noise() -> None:
    """A run that learns: one batch of two in four has a low loss, and five of the others may come one after another."""
    high, low = ({"chance": math.log(3), "loss": loss, "contrastive_accuracy": 0.6} for loss in (1.3, 0.05))
    assert kinds([*[high] * 6, *[low] * 2] * 40, batch_size=2) == {}
    assert kinds([high] * 400, batch_size=2) == {"chance": EARLIEST}


BEGINS = [AT_CHANCE | {"effective_dimension": 12.0}]  # one line of embeddings that are spread
COLLAPSED = AT_CHANCE | {"effective_dimension": 1.2}
SAME_VIEWS = {"contrastive_accuracy": 1.0, "positive_logit": 0.9991 / TEMPERATURE}
# What is told at which step, on the one side of a limit, and on the other side of it.
LIMITS = {
    "cosine of equal views": ([SAME_VIEWS], [SAME_VIEWS | {"positive_logit": 0.9989 / TEMPERATURE}], 1),
    "accuracy of equal views": (
        [SAME_VIEWS | {"contrastive_accuracy": 0.951}],
        [SAME_VIEWS | {"contrastive_accuracy": 0.949}],
        1,
    ),
    "accuracy at first": (
        [{"contrastive_accuracy": 0.951}] * 9,
        [*[{"contrastive_accuracy": 0.99}] * 2, *[{"contrastive_accuracy": 0.949}] * 7],
        EASY_LINES,
    ),
    "gap": ([{"batch_norm_gap": 0.301}] * 9, [{"batch_norm_gap": 0.299}] * 9, WINDOW),
    "gap the other way": ([{"batch_norm_gap": -0.301}] * 9, [{"batch_norm_gap": -0.299}] * 9, WINDOW),
    "rise of the loss": (
        [{}] * 20 + [{"loss": 4.31, "grad_norm": 31.0}] * 9,
        [{}] * 20 + [{"loss": 4.29, "grad_norm": 31.0}] * 9,
        25,
    ),
    "share of the best accuracy": (
        [{}] * 9 + [{"loss": 5.6, "contrastive_accuracy": 0.149}] * 20,
        [{}] * 9 + [{"loss": 5.6, "contrastive_accuracy": 0.151}] * 20,
        9 + WINDOW,
    ),
    "dimensions": (
        BEGINS + [COLLAPSED | {"effective_dimension": 1.99}] * 9,
        BEGINS + [*[COLLAPSED] * 4, COLLAPSED | {"effective_dimension": 2.01}] * 9,
        1 + WINDOW,
    ),
    "dimensions before": (
        [AT_CHANCE | {"effective_dimension": 4.01}] + [COLLAPSED] * 60,
        [AT_CHANCE | {"effective_dimension": 3.99}] + [COLLAPSED] * 60,
        1 + WINDOW,
    ),
    "pairs found in a collapse": (
        BEGINS + [COLLAPSED | {"contrastive_accuracy": 3.9 / 255}] * 60,
        BEGINS + [COLLAPSED | {"contrastive_accuracy": 4.1 / 255}] * 60,
        1 + WINDOW,
    ),
    "loss in a collapse": (
        BEGINS + [COLLAPSED | {"loss": CHANCE - 0.69}] * 60,
        BEGINS + [COLLAPSED | {"loss": CHANCE - 0.70}] * 60,
        1 + WINDOW,
    ),
    "loss below chance": (
        [AT_CHANCE | {"loss": CHANCE - 0.0199 / TEMPERATURE}] * 150,
        [AT_CHANCE | {"loss": CHANCE - 0.0201 / TEMPERATURE}] * 150,
        EARLIEST,
    ),
    "pairs found at chance": (
        [AT_CHANCE | {"contrastive_accuracy": 1.9 / 255}] * 150,
        [AT_CHANCE | {"contrastive_accuracy": 2.1 / 255}] * 150,
        EARLIEST,
    ),
    "pairs found later": (
        [AT_CHANCE | {"contrastive_accuracy": 2.1 / 255}] * 9
        + [AT_CHANCE | {"contrastive_accuracy": 4.1 / 255}] * 2000,
        [AT_CHANCE | {"contrastive_accuracy": 2.1 / 255}] * 9
        + [AT_CHANCE | {"contrastive_accuracy": 4.3 / 255}] * 2000,
        LATEST,
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_are_where_they_are_said_to_be(limit: str) -> None:
    beyond, within, step = LIMITS[limit]
    assert [*told(beyond)] == [step]
    assert told(within) == {}


def test_limits_of_a_batch_are_where_they_are_said_to_be() -> None:
    assert (WINDOW, EARLIEST, LATEST, EASY_LINES, EASY_STEPS) == (5, 100, 2000, 3, 10)
    easy = [{"contrastive_accuracy": 0.97}] * 9
    assert kinds(easy, first=EASY_STEPS - 2) == {"identical views": EASY_STEPS}
    assert kinds(easy, first=EASY_STEPS - 1) == {}
    assert (kinds(easy, batch_size=64), kinds(easy, batch_size=63)) == ({"identical views": EASY_LINES}, {})
    losses_vary_by = 0.9 / (0.1 * 4)  # of 8 images at a temperature of 0.1
    for factor, found in ((1.01, {"learning rate": 25}), (0.99, {})):
        exploding = {"loss": 3.0 + factor * losses_vary_by, "grad_norm": 31.0}
        assert kinds([{"loss": 3.0}] * 20 + [exploding] * 5, batch_size=8, temperature=0.1) == found
    of_two = {"temperature": 0.01, "chance": math.log(3), "contrastive_accuracy": 0.6}
    for loss, found in ((0.51 * math.log(3), {"chance": EARLIEST}), (0.49 * math.log(3), {})):
        assert kinds([of_two | {"loss": loss}] * 150, batch_size=2, temperature=0.01) == found


def test_warnings_name_what_was_measured_and_what_is_set() -> None:
    def text(*lines: dict[str, float], **options: float) -> str:
        (warning,) = told([*lines], **options).values()
        return warning.text

    of_rate = text(*[{}] * 20, *[{"grad_norm": 31.0, "loss": 4.9}] * 5, lr=0.25)
    assert "risen from 4.000 to 4.900, and the norm of its gradient from 3 to 31: " in of_rate
    assert "lower --lr (its peak is 0.25)" in of_rate
    lost = text(*[{}] * 9, *[AT_CHANCE | {"loss": 6.0}] * 5)
    assert f"the loss has risen from 4.000 to 6.000 (its chance level is {CHANCE})" in lost
    collapsed = text(*BEGINS, *[COLLAPSED] * 5, weight_decay=0.125)
    assert "collapsed to 1.2 dimensions" in collapsed
    assert "--lr (its peak is 0.002) or --weight-decay (now 0.125)" in collapsed
    at_chance = text(*[AT_CHANCE] * EARLIEST)
    assert f"after {EARLIEST} steps the loss, {CHANCE}, is not below its chance level of {CHANCE}" in at_chance
    assert "by -0.50 nats" in text(*[{"batch_norm_gap": -0.5}] * WINDOW)
    assert "(an untrained encoder finds 96%)" in text(
        *[{"contrastive_accuracy": accuracy} for accuracy in (1, 0.96, 1)]
    )
