"""Detection: exact boxes, COCO and VOC folders, detectors on any backbone, training that learns, the metric."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simclr_fast.backbones.family import Spec
from simclr_fast.backbones.registry import build, detection_stages
from simclr_fast.backbones.without_memory import WithoutMemory
from simclr_fast.cli import main
from simclr_fast.config import DataOptions
from simclr_fast.data import ImageArrays, load_dataset
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation.detection.detector import Scale, StageMaps, build_detector
from simclr_fast.evaluation.detection.scenes import INK_THRESHOLD, DigitScenes, InMemory
from simclr_fast.evaluation.detection.train import METRICS, Schedule, detect, evaluate_detector, train_detector

CPU = torch.device("cpu")
SMALL = Scale(image_size=(96, 96), width=16, anchors=32, boxes=16, proposals=(30, 30))


def detector_on(spec: Spec, architecture: str, classes: int = 2) -> tuple[nn.Module, nn.Module]:
    """A small detector, and the backbone in it."""
    backbone = build(spec)
    stages = detection_stages(spec, backbone)
    shared = {"channels": spec.channels, "classes": classes, "mean": (0.0,), "std": (1.0,), "scale": SMALL}
    return build_detector(architecture, backbone, stages, **shared), backbone


@pytest.fixture(scope="module")
def digits() -> ImageArrays:
    return load_dataset(DataOptions(dataset="mnist5k")).labelled


def test_scenes_depend_on_seed_and_index_alone(digits: ImageArrays) -> None:
    scenes = DigitScenes(digits, 3, seed=0)
    image, target = scenes[1]
    again, target_again = DigitScenes(digits, 50, seed=0)[1]
    assert torch.equal(image, again)
    assert torch.equal(target["boxes"], target_again["boxes"])
    assert not torch.equal(image, scenes[2][0])
    assert not torch.equal(image, DigitScenes(digits, 3, seed=1)[1][0])
    with pytest.raises(IndexError):
        scenes[3]


def test_boxes_are_exact() -> None:
    # Full squares in place of digits: inside a box all is brighter than any canvas, and just outside nothing is.
    squares = torch.zeros(10, 1, 28, 28, dtype=torch.uint8)
    squares[:, :, 8:20, 6:24] = 255
    scenes = DigitScenes(ImageArrays(squares, torch.arange(10)), 20, seed=3)
    for image, target in (scenes[i] for i in range(20)):
        bright = image[0] > 180
        covered = torch.zeros_like(bright)
        for left, top, right, bottom in target["boxes"].int().tolist():
            assert bright[top + 1 : bottom - 1, left + 1 : right - 1].all()  # the outermost pixels are antialiased
            covered[top:bottom, left:right] = True
        assert not bright[~covered].any()
        boxes = target["boxes"]
        corners = torch.max(boxes[:, None, :2], boxes[None, :, :2]), torch.min(boxes[:, None, 2:], boxes[None, :, 2:])
        common = (corners[1] - corners[0]).clamp_min(0).prod(dim=-1).fill_diagonal_(0)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
        assert (common <= 0.05 * torch.min(areas[:, None], areas)).all(), "digits hardly cover each other"
    assert INK_THRESHOLD < 0.5


def test_scene_labels_are_those_of_the_digits(digits: ImageArrays) -> None:
    sevens = digits.subset((digits.labels == 7).nonzero().flatten())
    targets = [DigitScenes(sevens, 5, seed=0)[i][1] for i in range(5)]
    assert all((target["labels"] == 8).all() for target in targets)
    assert all(2 <= len(target["labels"]) <= 5 for target in targets)


@pytest.mark.parametrize("architecture", ["faster-rcnn", "retinanet"])
@pytest.mark.parametrize(
    ("model", "channels", "strides"),
    [("resnet_mini", 1, [4, 8]), ("resnet18", 3, None)],
)
def test_detectors_on_any_backbone(architecture: str, model: str, channels: int, strides: list | None) -> None:
    detector, backbone = detector_on(Spec(model, channels), architecture, classes=4)
    expected = strides or {"faster-rcnn": [4, 8, 16, 32], "retinanet": [8, 16, 32]}[architecture]
    assert detector.backbone.strides == expected
    target = {"boxes": torch.tensor([[10.0, 10, 50, 60]]), "labels": torch.tensor([2])}
    losses = detector.train()([torch.rand(channels, 96, 96)] * 2, [target] * 2)
    sum(losses.values()).backward()
    trained = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"conv1.weight", "bn1.weight"} <= trained, "the whole backbone is trained"
    (found,) = detect(detector, [torch.randint(0, 256, (channels, 64, 80), dtype=torch.uint8)], CPU)
    assert found["boxes"].shape[1:] == (4,)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("efficientnet_b0", "faster-rcnn"),
        ("regnet_y_400mf", "retinanet"),
        ("swin_t", "retinanet"),
        ("timm/test_resnet", "faster-rcnn"),
    ],
)
def test_detectors_on_other_families(name: str, architecture: str) -> None:
    detector, backbone = detector_on(Spec(name), architecture)
    assert detector.backbone.strides == {"faster-rcnn": [4, 8, 16, 32], "retinanet": [8, 16, 32]}[architecture]
    target = {"boxes": torch.tensor([[10.0, 10, 50, 60]]), "labels": torch.tensor([1])}
    losses = detector.train()([torch.rand(3, 96, 96)] * 2, [target] * 2)
    sum(losses.values()).backward()
    first = next(backbone.parameters())
    assert first.grad.abs().sum() > 0, "the whole backbone is trained"


@pytest.mark.parametrize("name", ["efficientnet_v2_s", "convnext_tiny"])
def test_maps_have_the_strides_of_a_pyramid(name: str) -> None:
    with WithoutMemory():
        module = build(Spec(name)).to("meta").eval()
    maps = StageMaps(module, detection_stages(Spec(name), module))(torch.zeros(1, 3, 128, 96, device="meta"))
    assert [(128 // level.shape[2], 96 // level.shape[3]) for level in maps.values()] == [
        (s, s) for s in (4, 8, 16, 32)
    ]


def test_a_backbone_of_one_image_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"detect: this backbone gives no maps of images of any size \(") as refusal:
        detector_on(Spec("timm/swin_tiny_patch4_window7_224", size=56), "faster-rcnn")
    assert "\n" not in str(refusal.value)


def test_pyramid_sees_the_pretrained_features() -> None:
    detector, backbone = detector_on(Spec("resnet18"), "retinanet")
    detector.eval()
    images = torch.rand(2, 3, 64, 64)
    x = backbone.eval().maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    stages = []
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        stages.append(x := stage(x))
    for level, expected in zip(detector.backbone.body(images).values(), stages[1:]):
        torch.testing.assert_close(level, expected)


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="architecture='yolo'"):
        detector_on(Spec("resnet_mini"), "yolo")


def test_training_learns_and_follows_the_seed(digits: ImageArrays) -> None:
    scenes = InMemory(DigitScenes(digits, 4, seed=0))
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        detector, _ = detector_on(Spec("resnet_mini", 1), "faster-rcnn", classes=11)
        schedule = Schedule(steps=12, batch_size=4, warmup_steps=2, optimizer="adamw", hflip=0.5)
        runs.append(train_detector(detector, scenes, schedule, lr=2e-3, seed=0, device=CPU))
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)
    assert sum(runs[0][-3:]) < 0.8 * sum(runs[0][:3])


class _Oracle(torch.nn.Module):
    """Finds what it is told, in order, shifted by some pixels."""

    def __init__(self, targets: list[dict], shift: float):
        super().__init__()
        self.targets = iter(targets)
        self.shift = shift

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for _ in images:
            target = next(self.targets)
            scores = torch.linspace(1, 0.5, len(target["labels"]))
            found.append({"boxes": target["boxes"] + self.shift, "labels": target["labels"], "scores": scores})
        return found


def test_metric(digits: ImageArrays) -> None:
    scenes = InMemory(DigitScenes(digits, 6, seed=0))
    targets = [target for _, target in scenes.items]
    exact = evaluate_detector(_Oracle(targets, 0.0), scenes, CPU, batch_size=4)
    assert exact == pytest.approx(dict.fromkeys(METRICS, 1.0))
    shifted = evaluate_detector(_Oracle(targets, 3.0), scenes, CPU)
    assert shifted["map"] < 0.9
    assert shifted["map_75"] < shifted["map_50"]
    assert evaluate_detector(_Oracle(targets, 50.0), scenes, CPU)["map_50"] < 0.05


def eleven_points(found: list[bool], positives: int) -> Fraction:
    """VOC 2007's average precision of boxes, best first, each right or not, by its words and in exact numbers."""
    points = [(sum(found[:n]), n) for n in range(1, len(found) + 1)]
    best = [max((Fraction(tp, n) for tp, n in points if 10 * tp >= k * positives), default=0) for k in range(11)]
    return Fraction(sum(best), 11)


def test_eleven_points_are_those_of_voc_2007() -> None:
    """Boxes far from each other, some found and some missed, in an order of scores; of two classes."""
    torch.manual_seed(1)
    positives, right = 10, [True, False, True, True, False, False, True, False, True, False]  # recall 0.1, ..., 0.5
    corners = torch.arange(20) * 20.0
    boxes = torch.stack([corners, corners, corners + 10, corners + 10], dim=1)
    places = torch.where(torch.tensor(right), torch.arange(10), torch.arange(10, 20))
    target = {"boxes": boxes[:positives], "labels": torch.ones(positives, dtype=torch.int64)}
    second = {"boxes": boxes[:1], "labels": torch.tensor([2])}  # found up to IoU 0.7, not at 0.75
    shifted = boxes[:1] + torch.tensor([[0.0, 0, 0, 4]])  # IoU 0.71
    # What is found of a third class, of which there is no object, does not count.
    of_second = {"boxes": torch.cat([shifted, boxes[5:6]]), "labels": torch.tensor([2, 3])}
    found = [{"boxes": boxes[places], "labels": torch.ones(10, dtype=torch.int64)}, of_second]
    images = [(torch.zeros(1, 400, 400, dtype=torch.uint8), one) for one in (target, second)]
    scores = evaluate_detector(_Oracle(found, 0.0), images, CPU)
    first = float(eleven_points(right, positives))
    assert scores["voc_map_50"] == pytest.approx((first + 1) / 2)
    assert scores["voc_map_75"] == pytest.approx(first / 2)
    assert scores["voc_map"] == pytest.approx((first + 0.5) / 2), "the second counts at 5 of the 10 thresholds"
    assert abs(scores["map_50"] - scores["voc_map_50"]) > 0.005


def test_what_is_found_in_a_crowd_is_no_mistake() -> None:
    box, crowd, inside = [10.0, 10, 30, 30], [40.0, 40, 90, 90], [45.0, 45, 60, 60]
    target = {"boxes": torch.tensor([box, crowd]), "labels": torch.tensor([1, 1]), "iscrowd": torch.tensor([0, 1])}
    found = {"boxes": torch.tensor([inside, box]), "labels": torch.tensor([1, 1])}
    images = [(torch.zeros(1, 96, 96, dtype=torch.uint8), target)]
    assert evaluate_detector(_Oracle([found], 0.0), images, CPU)["map"] == pytest.approx(1.0)
    images[0][1]["iscrowd"] = torch.tensor([0, 0])
    assert evaluate_detector(_Oracle([found], 0.0), images, CPU)["map"] < 0.6


def test_command(run_folder: Path, tmp_path: Path) -> None:
    options = ["--steps", "2", "--batch-size", "2", "--seeds", "1", "--train-scenes", "4", "--test-scenes", "6"]
    arguments = ["detect", "--checkpoint", str(run_folder), "--output", str(tmp_path), "--threads", "1", *options]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "detect.json").read_text())["results"]
    assert set(results) == {"scratch", "checkpoint", "schedule", "held_out_map", "image_size"}
    assert results["schedule"]["steps"] == 2
    held_out = {float(rate): score for rate, score in results["held_out_map"].items()}
    assert set(held_out) == {1e-3, 2e-3, 4e-3}
    assert held_out[results["schedule"]["lr"]] == max(held_out.values())
    assert main([*arguments, "--lr", "0.005"]) == 0
    results = json.loads((tmp_path / "detect.json").read_text())["results"]
    assert (results["schedule"]["lr"], results["held_out_map"]) == (0.005, {"0.005": None})
    assert (tmp_path / "detect.png").read_bytes().startswith(b"\x89PNG")
