"""The command `detect`: a detector trained on the backbone, from the checkpoint and from random initialisation."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from simclr_fast.config import flag
from simclr_fast.data import load_dataset
from simclr_fast.errors import ConfigError
from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.detection.data import BACKGROUND, Annotations, joined, open_parts, read_coco, require_apart
from simclr_fast.evaluation.detection.detector import Scale, build_detector
from simclr_fast.evaluation.detection.scenes import CLASSES, DigitScenes, InMemory
from simclr_fast.evaluation.detection.train import METRICS, Schedule, detect, evaluate_detector, train_detector
from simclr_fast.evaluation.detection.voc import open_sets, read_objects
from simclr_fast.evaluation.options import DetectOptions
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.splits import hold_out
from simclr_fast.evaluation.tables import ResultTable, spread
from simclr_fast.process import autocast_dtype

INITS = {"scratch": "random init", "checkpoint": "SimCLR init"}
SHOWN_IMAGES = 6
SHOWN_SCORE = 0.3  # after so short a training, scores are low
SCENE_SCALE = Scale(image_size=(96, 96), width=32, anchors=64, boxes=32, proposals=(100, 100))
SCENE_RATES = (1e-3, 2e-3, 4e-3)
SCENE_STEPS = 120
HELD_OUT_DIGITS = 0.1  # share of the labelled digits that no training scene shows
HELD_OUT_SCENES = 100
PUBLISHED_SIZES = {"coco": (800, 1333), "voc": (480, 800)}  # shorter and longer side (pixels)


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned: data, class names (0 is the background), the detector's scale and its schedule.

    rates: peak learning rates, between which `held_out` decides; it is needed where there are several.
    """

    train: Dataset
    test: Dataset
    classes: list[str]
    scale: Scale
    schedule: Schedule
    rates: tuple[float, ...]
    held_out: Dataset | None = None


def main(session: Session) -> dict[str, Any]:
    """mAP, AP50 and AP75 by initialisation at equal budget: the same images, steps and learning rate; over seeds."""
    options, device = session.options, session.device
    session.run.stages(session.run.random_init())  # a backbone that has none is refused before anything is read
    task = scenes_task(session) if options.dataset == "scenes" else folder_task(session)
    inits = [name for name in INITS if options.init in ("both", name)]
    held_out = held_out_scores(session, task)
    rate = max(held_out, key=held_out.get)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in inits}
    shown = [task.test[i] for i in range(min(SHOWN_IMAGES, len(task.test)))]
    found = {}
    for seed in range(options.seeds):
        for init in inits:
            name = f"{INITS[init]}, seed {seed + 1} of {options.seeds}"
            detector = trained_detector(session, task, init, rate, seed, name)
            scores[init].append(evaluate_detector(detector, task.test, device, workers=task.schedule.workers))
            session.keep(_content(task, rate, held_out, scores))
            found[INITS[init]] = detect(detector, [image for image, _ in shown], device)
    content = _content(task, rate, held_out, scores)
    picture = pictures.detections(
        session.folder / "detect.png",
        [image for image, _ in shown],
        [target for _, target in shown],
        found,
        task.classes,
        SHOWN_SCORE,
    )
    rows = {title: {init: content[init][metric] for init in inits} for metric, title in METRICS.items()}
    schedule = task.schedule
    title = (
        f"{options.architecture}, {len(task.train)} training images, {schedule.steps} steps of {schedule.batch_size}, "
        f"learning rate {rate:g}: test precision (%), mean and standard deviation of {options.seeds} seeds"
    )
    table = ResultTable.of(title, "", {init: INITS[init] for init in inits}, rows)
    return session.finish(content, table, files=(picture,))


def _content(
    task: Task, rate: float, held_out: dict[float, float | None], scores: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """The results; scores: by initialisation, of as many seeds as have been measured."""
    return {
        "schedule": {**dataclasses.asdict(task.schedule), "lr": rate},
        "image_size": task.scale.image_size,
        "held_out_map": held_out,
        **{init: _over_seeds(of_init) for init, of_init in scores.items() if of_init},
    }


def _over_seeds(scores: list[dict[str, float]]) -> dict[str, dict]:
    by_metric = {metric: [score[metric] for score in scores] for metric in METRICS}
    return {metric: {**spread(values), "seeds": values} for metric, values in by_metric.items()}


def held_out_scores(session: Session, task: Task) -> dict[float, float | None]:
    """mAP (fraction) on the held-out images of random initialisation at each rate; None where there is only one.

    The baseline chooses for both, so that it is not the choice that makes the checkpoint look better.
    """
    if len(task.rates) == 1:
        return {task.rates[0]: None}
    scores = {}
    for rate in task.rates:
        # With the seed after those that are measured.
        name = f"{INITS['scratch']}, choosing the learning rate, {rate:g}"
        detector = trained_detector(session, task, "scratch", rate, session.options.seeds, name)
        scores[rate] = evaluate_detector(detector, task.held_out, session.device)["map"]
    return scores


def trained_detector(session: Session, task: Task, init: str, rate: float, seed: int, name: str) -> nn.Module:
    """A detector from the checkpoint or from random initialisation, trained on the task at a peak learning rate."""
    options, run = session.options, session.run
    backbone = run.encoder() if init == "checkpoint" else run.random_init(seed)
    torch.manual_seed(seed)  # of the detector's own layers and of its sampling of anchors and proposals
    detector = build_detector(
        options.architecture,
        backbone,
        run.stages(backbone),
        channels=run.channels,
        classes=len(task.classes),
        mean=run.config.augment.mean,
        std=run.config.augment.std,
        scale=task.scale,
    ).to(session.device)
    train_detector(
        detector,
        task.train,
        task.schedule,
        lr=rate,
        seed=seed,
        device=session.device,
        autocast=autocast_dtype(options.amp_dtype, session.device),
        title=f"{options.architecture}, {name}",
    )
    return detector


def scenes_task(session: Session) -> Task:
    """Scenes of the run's own digits: test scenes of test digits, held-out scenes of a tenth of the training digits."""
    options, data = session.options, session.run.config.data
    if data.dataset not in ("mnist5k", "mnist"):
        raise ConfigError(
            f"--dataset scenes: they are composed of digits, but the run was trained on {data.dataset}; "
            "pass --dataset coco or voc with --data"
        )
    digits = load_dataset(data)
    kept, held_out = hold_out(digits.labelled.labels, HELD_OUT_DIGITS, seed=0)
    steps = options.steps or SCENE_STEPS
    schedule = Schedule(
        steps=steps,
        batch_size=options.batch_size or 8,
        warmup_steps=steps // 10,
        optimizer="adamw",
    )
    return Task(
        train=InMemory(DigitScenes(digits.labelled.subset(kept), options.train_scenes, seed=0)),
        test=InMemory(DigitScenes(digits.test, options.test_scenes, seed=1)),
        held_out=InMemory(DigitScenes(digits.labelled.subset(held_out), HELD_OUT_SCENES, seed=2)),
        classes=[BACKGROUND, *CLASSES],
        scale=SCENE_SCALE,
        schedule=schedule,
        rates=(options.lr,) if options.lr else SCENE_RATES,
    )


def folder_task(session: Session) -> Task:
    """COCO's or VOC's folder at the published schedule, and at the published scale where the images are that large."""
    options = session.options
    train, test = open_parts(*_annotations(options), channels=session.run.channels)
    session.say(
        f"Reading each of the {len(train) + len(test)} images once, before hours of training rather than in them."
    )
    for part in (train, test):
        part.require_readable(options.workers)
    batch_size = options.batch_size or 16
    steps = options.steps or (90_000 if options.dataset == "coco" else 24_000)
    reference = 0.02 if options.architecture == "faster-rcnn" else 0.01
    return Task(
        train=train,
        test=test,
        classes=train.classes,
        scale=Scale(image_size=image_size(options, train.shorter_side())),
        schedule=Schedule(
            steps=steps,
            batch_size=batch_size,
            warmup_steps=min(500, steps // 10),
            hflip=0.5,
            workers=options.workers,
        ),
        rates=(options.lr or reference * batch_size / 16,),
    )


def image_size(options: DetectOptions, own: int) -> tuple[int, int]:
    """(shorter, longer) side that images are resized to (pixels); own: the shorter side that they have.

    As published, but not enlarged beyond their own size, which costs time and shows nothing more.
    """
    shorter, longer = PUBLISHED_SIZES[options.dataset]
    wanted = options.min_size or min(shorter, own)
    return wanted, round(wanted * longer / shorter)


def _annotations(options: DetectOptions) -> tuple[Annotations, Annotations]:
    """The training and the test part, each of one or more sets. Raises ConfigError where they share an image."""
    default = {"coco": ("train2017", "val2017"), "voc": ("2012-train", "2012-val")}[options.dataset]
    read = _read_coco_sets if options.dataset == "coco" else _read_voc_sets
    train_sets, test_sets = options.train_set or default[:1], options.test_set or default[1:]
    train, test = read(options.data, train_sets, "train_set"), read(options.data, test_sets, "test_set")
    require_apart((one.path for one in train.images), (one.path for one in test.images), "test_set", test_sets)
    for name, sets, part in (("train_set", train_sets, train), ("test_set", test_sets, test)):
        if all(all(image.crowds) for image in part.images):
            raise ConfigError(
                f"{flag(name)} {' '.join(sets)}: none of its {len(part.images)} images has an object that counts "
                "(crowds and difficult ones do not); pass a set with objects"
            )
    return train, test


def _read_coco_sets(root: Path, names: tuple[str, ...], option: str) -> Annotations:
    return joined([read_coco(root / name, root / "annotations" / f"instances_{name}.json") for name in names])


def _read_voc_sets(root: Path, names: tuple[str, ...], option: str) -> Annotations:
    return joined([read_objects(one) for one in open_sets(root, names, option)])
