"""Augmentation of uint8 batches: views per second at 32, 96 and 224 pixels, the whole recipe and every op alone."""

from dataclasses import dataclass

import torch

from benchmarks.augment_contestants import NAMES, NOTES, TAKES_NHWC, Recipe, absent, build
from benchmarks.harness import Absent, Contestant, Laps, compare, require
from simclr_fast.backends import BACKENDS


@dataclass(frozen=True)
class Case:
    """A batch of images, [batch, 3, side, side] -> 2 x [batch, 3, size, size]; input and output in the layout."""

    batch: int
    side: int
    size: int
    ops: str = "all"
    channels_last: bool = True

    def __str__(self) -> str:
        layout = "NHWC" if self.channels_last else "NCHW"
        return f"{self.batch}x{self.side}->{self.size},{self.ops},{layout}"


NOTHING = {"crop": False, "hflip": 0.0, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}
# Each op alone, always on.
OPS = {
    "all": {},
    "crop": {**NOTHING, "crop": True},
    "flip": {**NOTHING, "hflip": 1.0},
    "jitter": {**NOTHING, "jitter_p": 1.0},
    "gray": {**NOTHING, "gray_p": 1.0},
    "blur": {**NOTHING, "blur_p": 1.0},
    "solarize": {**NOTHING, "solarize_p": 1.0},
}
SMALL, MIDDLE, LARGE = (256, 32, 32), (128, 96, 96), (64, 256, 224)
CASES = {
    "smoke": [Case(4, 16, 16), Case(4, 16, 16, channels_last=False), *(Case(4, 24, 20, ops) for ops in OPS)],
    "quick": [
        *(Case(*shape) for shape in (SMALL, MIDDLE, LARGE)),
        *(Case(*SMALL, ops) for ops in OPS if ops != "all"),
        Case(*SMALL, channels_last=False),
    ],
    "full": [
        *(Case(*shape, ops) for shape in (SMALL, MIDDLE, LARGE) for ops in OPS),
        *(Case(*shape, channels_last=False) for shape in (SMALL, MIDDLE, LARGE)),
    ],
}
# Correct pipelines differ by their draws: batch means agree up to sampling noise, of which five standard errors are
# granted on top of this. Exactness per sample, with equal parameters, is what the tests of the package show.
TOLERANCE = 0.05


def photographs(batch: int, side: int) -> torch.Tensor:
    """uint8 [batch, 3, side, side], smooth as photographs are: noise of falling spectrum, other in each channel."""
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(batch, 3, side, side)
    for octave in (4, 8, 16, side):
        noise = torch.rand(batch, 3, octave, octave, generator=generator) - 0.5
        image += torch.nn.functional.interpolate(noise, size=side, mode="bilinear") * (4 / octave) ** 0.5
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    return ((image - low) / (high - low) * 255).round().to(torch.uint8)


def statistics(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per channel: mean, deviation, and step between neighbouring pixels (which blur and resampling change).

    Each is taken per image; returned are its mean over the images and the standard error of that, both [3, C].
    """
    views = views.float().cpu()
    steps = (views[..., 1:] - views[..., :-1]).abs().mean((2, 3))
    per_image = torch.stack([views.mean((2, 3)), views.std((2, 3)), steps])  # [3, B, C]
    return per_image.mean(1), per_image.std(1) / len(views) ** 0.5


def test_augment(benchmark, case: Case, device: torch.device, budget: float) -> None:
    torch.manual_seed(0)
    recipe = Recipe(case.size, **OPS[case.ops])
    images = photographs(case.batch, case.side).to(device)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    truth, truth_error = statistics(build("torchvision", recipe, device, True)(images.cpu()))

    def check(views: torch.Tensor) -> tuple[float, float]:
        if views.shape != (2 * case.batch, 3, case.size, case.size) or views.dtype != torch.float32:
            return float("inf"), TOLERANCE
        mean, error = statistics(views)
        excess = (mean - truth).abs() - 5 * (error**2 + truth_error**2).sqrt()
        return excess.max().clamp_min(0).item(), TOLERANCE

    field: list[Contestant | Absent] = []
    for name in NAMES:
        if reason := absent(name, recipe, device):
            field.append(Absent(name, reason))
            continue
        views = build(name, recipe, device, case.channels_last)
        pixels = nhwc if name in TAKES_NHWC or (case.channels_last and name in BACKENDS) else images

        def run(lap: Laps, views=views, pixels=pixels) -> torch.Tensor:
            made = views(pixels)
            lap("augment")
            return made

        field.append(Contestant(name, run, note=NOTES.get(name, "")))
    crop_bytes = 3 * case.side**2 if not recipe.crop else 3 * case.side**2 * 0.5
    found = compare(
        benchmark,
        field,
        check,
        device,
        budget,
        suite="augment",
        case=vars(case),
        views=2 * case.batch,
        least_bytes_per_view=crop_bytes + 12 * case.size**2,
    )
    require(found, BACKENDS)
