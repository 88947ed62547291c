"""Detection: what each initialisation, choice and figure is made of; the schedule; flips that take the boxes along."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from simclr_fast.backbones.family import Spec, Stage
from simclr_fast.backbones.registry import build
from simclr_fast.cli import parse
from simclr_fast.data import Dataset, ImageArrays
from simclr_fast.errors import NonFiniteLossError
from simclr_fast.evaluation import detect
from simclr_fast.evaluation.detection.detector import Scale, build_detector
from simclr_fast.evaluation.detection.train import METRICS, Schedule, train_detector
from simclr_fast.evaluation.detection.train import detect as detect_images
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.models import build_backbone
from simclr_fast.optim import lr_at
from simclr_fast.process import Process
from tests.evaluation.conftest import recorded_rates
from tests.evaluation.test_detection_data import write_coco
from tests.evaluation.voc_folders import write_voc

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Training images 0 to 59 and test images 100 to 119, each of one brightness: its number."""
    images = lambda numbers: numbers.view(-1, 1, 1, 1).expand(-1, 1, 28, 28).to(torch.uint8)
    part = lambda numbers: ImageArrays(images(numbers), numbers % 10)
    return Dataset(part(torch.arange(60)), part(torch.arange(60)), part(torch.arange(100, 120)))


class Scenes(list):
    """Stands for DigitScenes: knows the digits that it would show."""

    def __init__(self, digits: ImageArrays, count: int, seed: int):
        image, target = torch.zeros(1, 8, 8, dtype=torch.uint8), {"boxes": torch.zeros(0, 4)}
        super().__init__([(image, target)] * count)
        self.digits, self.seed = set(digits.images[:, 0, 0, 0].tolist()), seed


@pytest.fixture
def run_detect(run_folder: Path, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs `detect` on scenes with detectors that find nothing; gives what it did, and the results.

    held_out: mAP on the held-out scenes by learning rate; test mAP is a number of its own for every detector. fails_at:
    the detector, counted from 1, whose training ends by an error.
    """

    def run(
        held_out: dict[float, float], *arguments: str, fails_at: int = 0
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        built: list[dict[str, Any]] = []
        drawn: list[tuple[Any, ...]] = []

        def build(architecture, backbone, stages, **options):
            if len(built) + 1 == fails_at:
                raise NonFiniteLossError("the loss is nan at step 3")
            detector = nn.Linear(1, 1)
            weights = {name: value.clone() for name, value in backbone.state_dict().items()}
            built.append({"detector": detector, "architecture": architecture, "weights": weights, **options})
            return detector

        def train_it(detector, data, schedule, **options):
            assert detector is built[-1]["detector"]
            built[-1].update(options, data=data, schedule=schedule)

        def evaluate(detector, data, device, workers=None):
            assert detector is built[-1]["detector"]
            built[-1].update(scored=data, workers=workers)
            score = held_out[built[-1]["lr"]] if getattr(data, "seed", None) == 2 else len(built) / 100
            return dict.fromkeys(METRICS, score)

        for name, stand_in in (
            ("load_dataset", lambda _: digits),
            ("DigitScenes", Scenes),
            ("InMemory", lambda scenes: scenes),
            ("build_detector", build),
            ("train_detector", train_it),
            ("evaluate_detector", evaluate),
            ("detect", lambda detector, images, device: [{}] * len(images)),
        ):
            monkeypatch.setattr(detect, name, stand_in)
        monkeypatch.setattr(detect.pictures, "detections", lambda path, *given: drawn.append(given) or path)
        _, options = parse(["detect", "--checkpoint", str(run_folder), *arguments])
        process = Process(0, 1, CPU)
        detect.main(Session("detect", options, Run.open(run_folder), process, tmp_path, Console(quiet=True)))
        ((images, truth, found, classes, score),) = drawn
        assert len(images) == len(truth) == min(6, len(built[-1]["scored"])), "of test images"
        assert (len(classes), score) == (built[-1]["classes"], 0.3)
        inits = {"both": ["random init", "SimCLR init"], "scratch": ["random init"], "checkpoint": ["SimCLR init"]}
        assert list(found) == inits[options.init], "what detectors of both starts find"
        return built, json.loads((tmp_path / "detect.json").read_text())["results"]

    return run


def test_a_failure_costs_nothing_that_was_measured(run_detect, tmp_path: Path) -> None:
    arguments = ["--lr", "0.001", "--seeds", "2", "--train-scenes", "3", "--test-scenes", "5"]
    run_detect(RATES, *arguments)
    before = (tmp_path / "detect.json").read_text()
    with pytest.raises(NonFiniteLossError):
        run_detect(RATES, *arguments, fails_at=4)
    kept = json.loads((tmp_path / "detect.json.unfinished").read_text())["results"]
    assert [kept[init]["map"]["seeds"] for init in ("scratch", "checkpoint")] == [[0.01, 0.03], [0.02]]
    assert (kept["schedule"]["lr"], kept["held_out_map"]) == (0.001, {"0.001": None})
    assert (tmp_path / "detect.json").read_text() == before, "the whole results of before stay"
    run_detect(RATES, *arguments)
    assert not (tmp_path / "detect.json.unfinished").exists()


RATES = {1e-3: 0.2, 2e-3: 0.1, 4e-3: 0.3}


def test_scenes_are_made_of_the_digits_of_their_part(run_detect) -> None:
    built, _ = run_detect(RATES, "--seeds", "1", "--train-scenes", "3", "--test-scenes", "5")
    train_digits, held_out = built[0]["data"].digits, built[0]["scored"].digits
    assert built[-1]["scored"].digits == set(range(100, 120)), "test digits in test scenes"
    assert (train_digits | held_out) == set(range(60))
    assert not train_digits & held_out
    assert len(held_out) == 10, "one of each class"
    assert len({one.seed for one in (built[0]["data"], built[0]["scored"], built[-1]["scored"])}) == 3
    assert (len(built[0]["data"]), len(built[-1]["scored"])) == (3, 5)


def test_random_initialisation_chooses_the_rate_on_held_out_scenes(run_detect, run_folder: Path) -> None:
    built, results = run_detect(RATES, "--seeds", "2")
    choosing, measured = built[:3], built[3:]
    run = Run.open(run_folder)
    assert [one["lr"] for one in choosing] == list(RATES)
    assert all((one["scored"].seed, len(one["scored"])) == (2, 100) for one in choosing), "no test scene chooses"
    assert all(torch.equal(one["weights"]["conv1.weight"], run.random_init(2).conv1.weight) for one in choosing)
    assert results["held_out_map"] == {str(rate): score for rate, score in RATES.items()}
    assert results["schedule"]["lr"] == 4e-3
    assert [one["lr"] for one in measured] == [4e-3] * 4
    assert all(one["scored"].seed == 1 for one in measured), "test scenes"
    assert all(one["data"] is choosing[0]["data"] for one in measured), "equal budget"


def test_each_initialisation_is_under_its_name(run_detect, run_folder: Path, tmp_path: Path) -> None:
    built, results = run_detect({}, "--seeds", "2", "--lr", "0.01")
    run = Run.open(run_folder)
    starts = [run.random_init(0), run.encoder(), run.random_init(1), run.encoder()]
    for one, start in zip(built, starts, strict=True):
        assert torch.equal(one["weights"]["conv1.weight"], start.conv1.weight)
    assert [one["seed"] for one in built] == [0, 0, 1, 1]
    assert results["scratch"]["map"]["seeds"] == [0.01, 0.03]
    assert results["checkpoint"]["map"]["seeds"] == [0.02, 0.04]
    (table,) = json.loads((tmp_path / "detect.json").read_text())["tables"]
    assert table["columns"] == ["", "random init", "SimCLR init"]
    assert table["rows"][:2] == [[name, "2.0 ± 1.4", "3.0 ± 1.4"] for name in ("mAP", "AP50")]
    assert table["title"].startswith("faster-rcnn, 100 training images, 120 steps of 8, learning rate 0.01: ")
    assert table["title"].endswith("mean and standard deviation of 2 seeds")


def test_scenes_are_trained_on_as_given_or_by_the_schedule_of_scenes(run_detect) -> None:
    (one, *_), _ = run_detect({}, "--seeds", "1", "--lr", "0.01", "--init", "scratch")
    assert one["schedule"] == Schedule(steps=120, batch_size=8, warmup_steps=12, optimizer="adamw")
    assert (one["architecture"], one["autocast"], one["classes"], one["channels"]) == ("faster-rcnn", None, 11, 1)
    assert one["scale"] == Scale((96, 96), width=32, anchors=64, boxes=32, proposals=(100, 100))
    given = ("--architecture", "retinanet", "--steps", "50", "--batch-size", "4", "--amp-dtype", "bfloat16")
    (one, *more), _ = run_detect({}, "--seeds", "1", "--lr", "0.01", "--init", "checkpoint", *given)
    assert not more
    assert one["schedule"] == Schedule(steps=50, batch_size=4, warmup_steps=5, optimizer="adamw")
    assert (one["architecture"], one["autocast"]) == ("retinanet", torch.bfloat16)
    assert (len(one["data"]), len(one["scored"])) == (100, 300)


@pytest.mark.parametrize(
    ("dataset", "arguments", "schedule", "rate"),
    [
        ("voc", (), Schedule(24_000, 16, 500, hflip=0.5, workers=8), 0.02),
        (
            "coco",
            ("--architecture", "retinanet", "--batch-size", "4"),
            Schedule(90_000, 4, 500, hflip=0.5, workers=8),
            0.0025,
        ),
        ("voc", ("--steps", "60", "--lr", "0.3", "--workers", "2"), Schedule(60, 16, 6, hflip=0.5, workers=2), 0.3),
    ],
)
def test_folders_are_trained_on_by_the_published_schedule(
    dataset: str, arguments: tuple, schedule: Schedule, rate: float, run_detect, tmp_path: Path
) -> None:
    """For Faster R-CNN a rate of 0.02 for 16 images, for RetinaNet half of it; 90,000 steps on COCO."""
    make = write_coco if dataset == "coco" else write_voc
    names = ("train2017", "val2017") if dataset == "coco" else ("2012-train", "2012-val")
    for name in names:
        make(tmp_path, name, *([] if dataset == "coco" else ["cat"]))
    found = ("--dataset", dataset, "--data", str(tmp_path), "--seeds", "1", "--init", "scratch")
    (one,), results = run_detect({}, *found, *arguments)
    assert (one["schedule"], one["lr"], one["workers"]) == (schedule, pytest.approx(rate), schedule.workers)
    assert results["schedule"]["lr"] == pytest.approx(rate)
    assert one["scale"] == Scale(tuple(results["image_size"]), 256, 256, 512, (2000, 1000)), "as torchvision has them"
    assert {Path(image.path).parent.name for image in one["data"].images} <= {"train2017", "JPEGImages"}
    assert {Path(image.path).stem for image in one["scored"].images} == ({"1", "2"} if dataset == "coco" else {"val"})


def test_detectors_are_those_of_the_publications() -> None:
    """Anchors of 4 strides of their level, RetinaNet's in thirds of octaves, and as many proposals as asked for."""
    scale = Scale(image_size=(32, 32), width=8, anchors=64, boxes=32, proposals=(50, 20))
    shared = {"channels": 1, "classes": 3, "mean": (0.0,), "std": (1.0,), "scale": scale}
    stages = (Stage("blocks.2"), Stage("blocks.3"))
    make = lambda name: build_detector(name, build(Spec("resnet_mini", 1)), stages, **shared)
    retina, faster = make("retinanet"), make("faster-rcnn")
    assert retina.anchor_generator.sizes == tuple(
        (4 * s, int(4 * s * 2 ** (1 / 3)), int(4 * s * 2 ** (2 / 3))) for s in (4, 8, 16, 32)
    )
    assert faster.rpn.anchor_generator.sizes == ((16,), (32,), (64,))
    for generator in (retina.anchor_generator, faster.rpn.anchor_generator):
        assert set(generator.aspect_ratios) == {(0.5, 1.0, 2.0)}
    rpn, heads = faster.rpn, faster.roi_heads
    assert [rpn._pre_nms_top_n, rpn._post_nms_top_n] == [{"training": 50, "testing": 20}] * 2
    assert (rpn.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.batch_size_per_image) == (64, 32)
    assert (heads.box_predictor.cls_score.in_features, heads.box_predictor.cls_score.out_features) == (32, 3)
    assert heads.box_roi_pool.featmap_names == ["0", "1"]


def test_images_are_normalised_as_the_recipe_says(run_detect, run_folder: Path) -> None:
    built, _ = run_detect({}, "--seeds", "1", "--lr", "0.01")
    augment = Run.open(run_folder).config.augment
    assert augment.mean != augment.std
    assert (built[0]["mean"], built[0]["std"]) == (augment.mean, augment.std)
    scale = Scale(image_size=(32, 32), width=8)
    shared = {"channels": 3, "classes": 2, "mean": (0.3,), "std": (0.6,), "scale": scale}
    backbone, _ = build_backbone("resnet_mini")
    detector = build_detector("retinanet", backbone, (Stage("blocks.2"), Stage("blocks.3")), **shared)
    assert detector.transform.image_mean == [0.3] * 3
    assert detector.transform.image_std == [0.6] * 3
    assert (detector.transform.min_size, detector.transform.max_size) == ((32,), 32)


class Recorder(nn.Module):
    """A detector of one weight that keeps the batches it is trained on."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[tuple[list, list]] = []

    def forward(self, images: list, targets: list) -> dict[str, torch.Tensor]:
        self.batches.append((images, targets))
        return {"loss": self.layer(images[0].mean().view(1, 1)).float().square().sum()}


def marked_images(count: int) -> list[tuple[torch.Tensor, dict]]:
    """Black images with a bright rectangle, and its box, off the centre."""
    items = []
    for i in range(count):
        image = torch.zeros(1, 10, 20, dtype=torch.uint8)
        left, top = 1 + i % 3, 2 + i % 4
        image[:, top : top + 3, left : left + 5] = 255
        box = torch.tensor([[left, top, left + 5, top + 3]], dtype=torch.float32)
        items.append((image, {"boxes": box, "labels": torch.tensor([1 + i % 2])}))
    return items


def test_flips_take_the_boxes_along() -> None:
    detector, items = Recorder(), marked_images(12)
    train_detector(detector, items, Schedule(12, 2, 0, hflip=0.5), lr=1e-3, seed=0, device=CPU)
    flipped = 0
    for images, targets in detector.batches:
        for image, target in zip(images, targets):
            (left, top, right, bottom) = target["boxes"][0].int().tolist()
            assert (right - left, bottom - top) == (5, 3)
            assert image[:, top:bottom, left:right].min() == 1.0, "the box is where the rectangle is"
            assert image.sum() == 15
            flipped += left > 10
    assert 4 <= flipped <= 20, "about half of 24"
    detector = Recorder()
    train_detector(detector, items, Schedule(3, 2, 0), lr=1e-3, seed=0, device=CPU)
    assert all(target["boxes"][0, 0] < 10 for _, targets in detector.batches for target in targets)


def test_a_loss_that_is_not_finite_stops() -> None:
    detector = Recorder()
    nn.init.constant_(detector.layer.bias, math.nan)
    with pytest.raises(NonFiniteLossError, match=r"the detector's loss is nan at step 0; lower --lr 0\.25"):
        train_detector(detector, marked_images(2), Schedule(2, 1, 0), lr=0.25, seed=0, device=CPU)


def test_a_detector_looks_at_images_as_it_was_trained_on_them() -> None:
    class Looking(nn.Module):
        def forward(self, images: list) -> list:
            assert not self.training
            assert not torch.is_grad_enabled()
            return [{"boxes": image.amax(dim=(1, 2))[None]} for image in images]

    images = [torch.full((1, 4, 4), value, dtype=torch.uint8) for value in (51, 255)]
    assert [one["boxes"].item() for one in detect_images(Looking().train(), images, CPU)] == pytest.approx([0.2, 1.0])


def test_crowds_do_not_train() -> None:
    image, target = marked_images(1)[0]
    crowd = {
        "boxes": torch.cat([torch.tensor([[0.0, 0, 20, 10]]), target["boxes"]]),
        "labels": torch.tensor([7, 1]),
        "iscrowd": torch.tensor([1, 0]),
    }
    detector = Recorder()
    train_detector(detector, [(image, crowd)], Schedule(1, 1, 0), lr=1e-3, seed=0, device=CPU)
    (_, (seen,)) = detector.batches[0]
    assert seen["labels"].tolist() == [1]
    assert torch.equal(seen["boxes"], target["boxes"])


class Summing(Recorder):
    """Also keeps what tells its batches apart; its loss is of two parts, as those of detectors are."""

    def forward(self, images: list, targets: list) -> dict[str, torch.Tensor]:
        self.batches.append(
            [(image.sum().item(), target["boxes"][0, 0].item()) for image, target in zip(images, targets)]
        )
        x = torch.stack([image.mean() for image in images]).view(-1, 1)
        y = torch.stack([target["boxes"][0, 0] for target in targets]).view(-1, 1)
        errors = (self.layer(x).float() - y).square()
        return {"a": errors.mean(), "b": 0.5 * self.layer.weight.abs().sum()}


def brightening_images(count: int) -> list[tuple[torch.Tensor, dict]]:
    """Each of a brightness of its own, with its box."""
    return [
        (torch.full((1, 10, 20), 20 * (1 + i), dtype=torch.uint8), {**target, "boxes": target["boxes"] + i})
        for i, (_, target) in enumerate(marked_images(count))
    ]


def test_a_detector_is_trained_as_by_a_plain_loop() -> None:
    items, seen = brightening_images(6), []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        detector, plain = Summing(), nn.Linear(1, 1)
        plain.load_state_dict(detector.layer.state_dict())
        schedule = Schedule(6, 2, 2, hflip=0.5, weight_decay=0.01)
        losses = train_detector(detector, items, schedule, lr=1e-3, seed=seed, device=CPU)
        seen.append(detector.batches)
    assert seen[0] == seen[1], "one seed, the same batches and flips"
    assert seen[0] != seen[2]
    for epoch in (seen[0][:3], seen[0][3:]):
        assert len({total for batch in epoch for total, _ in batch}) == 6, "every image once in an epoch"
    optimizer = torch.optim.SGD(
        [{"params": [plain.weight], "weight_decay": 0.01}, {"params": [plain.bias]}], lr=1.0, momentum=0.9
    )
    for step, batch in enumerate(seen[2]):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, 1e-3, 6, 2)
        x, y = torch.tensor(batch).float().split(1, dim=1)
        loss = (plain(x / 200) - y).square().mean() + 0.5 * plain.weight.abs().sum()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 10.0)
        optimizer.step()
    torch.testing.assert_close(detector.layer.weight, plain.weight)


@pytest.mark.parametrize(("autocast", "weight"), [(None, 50.0), (None, 0.1), (torch.float16, 0.1)])
def test_a_step_that_would_blow_up_is_clipped(autocast: torch.dtype | None, weight: float) -> None:
    """To a norm of 10, of the gradient itself, not of what float16 scales it to."""
    detector = Recorder()
    nn.init.constant_(detector.layer.weight, weight)
    nn.init.zeros_(detector.layer.bias)
    before = [p.detach().clone() for p in detector.parameters()]
    schedule = Schedule(1, 1, 0, weight_decay=0.0)
    image = torch.full((1, 10, 20), 255, dtype=torch.uint8)
    train_detector(
        detector, [(image, marked_images(1)[0][1])], schedule, lr=0.01, seed=0, device=CPU, autocast=autocast
    )
    change = torch.stack([(p - was).flatten() for p, was in zip(detector.parameters(), before)]).norm().item()
    assert change == pytest.approx(0.01 * min(10, 2 * weight * 2**0.5), rel=1e-3)  # of the loss weight^2
    train_detector(Recorder(), marked_images(2), Schedule(2, 1, 0), lr=0.01, seed=0, device=CPU, autocast=autocast)


@pytest.mark.parametrize(("name", "optimizer"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_learning_rate_warms_up_and_falls(name: str, optimizer: type, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = recorded_rates(monkeypatch, optimizer)
    schedule = Schedule(steps=8, batch_size=2, warmup_steps=2, optimizer=name)
    train_detector(Recorder(), marked_images(4), schedule, lr=0.01, seed=0, device=CPU)
    cosine = [0.005 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert rates == pytest.approx([0.005, 0.01, *cosine])


def test_biases_and_norms_of_a_detector_are_not_decayed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, plain = [], torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda groups, **o: made.append((groups, o)) or plain(groups, **o))
    detector = Recorder()
    train_detector(detector, marked_images(2), Schedule(1, 2, 0, weight_decay=0.5), lr=0.01, seed=0, device=CPU)
    ((groups, options),) = made
    assert options == {"lr": 0.01, "momentum": 0.9}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in detector.named_parameters()} == {"layer.weight": 0.5, "layer.bias": 0.0}
