"""The command `detect`: a detector trained on the backbone, from the checkpoint and from random initialisation."""

import dataclasses
import statistics

import torch
from torch.utils.data import Dataset

from simclr_fast.config import ConfigError
from simclr_fast.data import load_dataset
from simclr_fast.evaluation import pictures
from simclr_fast.evaluation.detection.data import DetectionFolder, coco_detection, voc_detection
from simclr_fast.evaluation.detection.detector import Scale, build_detector
from simclr_fast.evaluation.detection.scenes import CLASSES, DigitScenes, InMemory
from simclr_fast.evaluation.detection.train import METRICS, Schedule, detect, evaluate_detector, train_detector
from simclr_fast.evaluation.options import DetectOptions
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable, percent
from simclr_fast.training.start import autocast_dtype

INITS = {"random": "random init", "checkpoint": "SimCLR init"}
SHOWN_IMAGES = 6
SHOWN_SCORE = 0.5
TRAIN_SCENES = 1000
SCENE_SCALE = Scale(image_size=(96, 96), width=32, anchors=64, boxes=32, proposals=(100, 100))


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learned: data, class names (0 is the background), the detector's scale and its schedule."""

    train: Dataset
    test: Dataset
    classes: list[str]
    scale: Scale
    schedule: Schedule


def main(session: Session) -> None:
    """mAP, AP50 and AP75 by initialisation at equal budget: the same images, steps and rates; mean over seeds."""
    options, run, device = session.options, session.run, session.device
    task = scenes_task(session) if options.data == "scenes" else folder_task(session)
    inits = [name for name in INITS if options.init in ("both", name)]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in inits}
    losses: dict[str, list[float]] = {}
    shown = [task.test[i] for i in range(min(SHOWN_IMAGES, len(task.test)))]
    found = {}
    for seed in range(options.seeds):
        for init in inits:
            backbone = run.encoder() if init == "checkpoint" else run.random_init(seed)
            torch.manual_seed(seed)  # of the detector's own layers and of its sampling of anchors and proposals
            detector = build_detector(
                options.architecture,
                backbone,
                channels=run.channels,
                classes=len(task.classes),
                mean=run.config.augment.mean,
                std=run.config.augment.std,
                scale=task.scale,
            ).to(device)
            losses[init] = train_detector(
                detector,
                task.train,
                task.schedule,
                seed=seed,
                device=device,
                autocast=autocast_dtype(options.amp_dtype, device),
                title=f"{options.architecture}, {INITS[init]}, seed {seed + 1} of {options.seeds}",
            )
            scores[init].append(evaluate_detector(detector, task.test, device, workers=task.schedule.workers))
            found[INITS[init]] = detect(detector, [image for image, _ in shown], device)
    results = {
        init: {
            metric: {
                "mean": statistics.mean(score[metric] for score in of_init),
                "std": statistics.stdev(score[metric] for score in of_init) if len(of_init) > 1 else 0.0,
                "seeds": [score[metric] for score in of_init],
            }
            for metric in METRICS
        }
        for init, of_init in scores.items()
    }
    picture = pictures.detections(
        session.folder / "detect.png",
        [image for image, _ in shown],
        [target for _, target in shown],
        found,
        task.classes,
        SHOWN_SCORE,
    )
    rows = {
        title: {init: percent(results[init][metric]["mean"], results[init][metric]["std"]) for init in inits}
        for metric, title in METRICS.items()
    }
    schedule = task.schedule
    title = (
        f"{options.architecture}, {schedule.steps} steps of {schedule.batch_size} images: "
        f"test precision (%), mean and standard deviation of {options.seeds} seeds"
    )
    table = ResultTable.of(title, "", {init: INITS[init] for init in inits}, rows)
    session.finish({"schedule": dataclasses.asdict(schedule), **results}, table, files=(picture,))


def scenes_task(session: Session) -> Task:
    """Scenes of the run's own digits: training scenes of training digits, test scenes of test digits."""
    options, data = session.options, session.run.config.data
    if data.dataset not in ("mnist5k", "mnist"):
        raise ConfigError(
            f"--data scenes: they are composed of digits, but the run was trained on {data.dataset}; "
            "pass --data coco or voc with --data-dir"
        )
    digits = load_dataset(data)
    names = ["background", *CLASSES]
    steps, batch_size = options.steps or 150, options.batch_size or 8
    schedule = Schedule(
        steps=steps,
        batch_size=batch_size,
        lr=options.lr or 2e-3,
        warmup_steps=steps // 10,
        optimizer="adamw",
    )
    return Task(
        train=InMemory(DigitScenes(digits.labelled, min(TRAIN_SCENES, steps * batch_size), seed=0)),
        test=InMemory(DigitScenes(digits.test, options.test_scenes, seed=1)),
        classes=names,
        scale=SCENE_SCALE,
        schedule=schedule,
    )


def folder_task(session: Session) -> Task:
    """COCO's or VOC's folder at the published scale and schedule."""
    options = session.options
    train, test = (_folder(options, part, session.run.channels) for part in ("train", "test"))
    batch_size = options.batch_size or 16
    steps = options.steps or (90_000 if options.data == "coco" else 24_000)
    reference = 0.02 if options.architecture == "faster-rcnn" else 0.01
    return Task(
        train=train,
        test=test,
        classes=train.classes,
        scale=Scale() if options.data == "coco" else Scale(image_size=(480, 800)),
        schedule=Schedule(
            steps=steps,
            batch_size=batch_size,
            lr=options.lr or reference * batch_size / 16,
            warmup_steps=min(500, steps // 10),
            hflip=0.5,
            workers=options.workers,
        ),
    )


def _folder(options: DetectOptions, part: str, channels: int) -> DetectionFolder:
    name = options.train_set if part == "train" else options.test_set
    if options.data == "coco":
        name = name or f"{'train' if part == 'train' else 'val'}2017"
        return coco_detection(
            options.data_dir / name, options.data_dir / "annotations" / f"instances_{name}.json", channels
        )
    year, _, image_set = (name or f"2012-{'train' if part == 'train' else 'val'}").partition("-")
    return voc_detection(options.data_dir, year, image_set, channels)
