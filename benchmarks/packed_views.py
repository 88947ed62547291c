"""What packing changes in the views that training cuts out: python -m benchmarks.packed_views FOLDER [--size 256]

FOLDER holds JPEG files. Views of 224 px by random resized crop (areas of 8 to 100 %, antialiased bilinear, as training
does it) are cut out of each file and, from the same places, out of what `pack` makes of it. The table gives, by area of
the crop, the mean absolute difference (of 255), the PSNR (dB), and how much of the original's local contrast (mean
absolute difference of neighbouring pixels) is left. It says nothing of the accuracy of a model.
"""

import argparse
import io
import math
import random
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from simclr_fast.data.pack_images import FILTER, JpegForm, shrunk

VIEW = 224
AREAS = ((0.08, 0.25), (0.25, 0.5), (0.5, 1.0))
Box = tuple[float, float, float, float]


def forms(original: Image.Image, size: int) -> dict[str, Image.Image]:
    """What the views of the original are compared with, by name."""
    pixels = np.asarray(original)
    shorter = min(original.size)
    wanted = tuple(round(side * size / shorter) for side in original.size)
    decoded = lambda image: Image.open(io.BytesIO(JpegForm(size, 90).encode(np.asarray(image)))).convert("RGB")
    return {
        f"raw, {size}, {FILTER.name.lower()} (as packed)": Image.fromarray(shrunk(pixels, size)),
        f"JPEG q90, {size}, {FILTER.name.lower()} (as packed)": decoded(shrunk(pixels, size)),
        f"JPEG q90, {size}, bilinear": decoded(original.resize(wanted, Image.Resampling.BILINEAR)),
        "JPEG q90, not shrunk": decoded(pixels),
    }


def crop(generator: random.Random, area: tuple[float, float], aspect: float) -> Box:
    """A box in fractions of the image's width and height, as a random resized crop draws them."""
    while True:
        share = generator.uniform(*area)
        ratio = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3))) / aspect
        width, height = math.sqrt(share * ratio), math.sqrt(share / ratio)
        if width <= 1 and height <= 1:
            left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
            return left, top, left + width, top + height


def view(image: Image.Image, box: Box) -> np.ndarray:
    """float64 [VIEW, VIEW, 3] of a box in fractions; the same place whatever the size of the image."""
    pixels = tuple(edge * side for edge, side in zip(box, image.size * 2))
    cut = image.resize((VIEW, VIEW), Image.Resampling.BILINEAR, box=pixels)
    return np.asarray(cut, dtype=np.float64)


def contrast(image: np.ndarray) -> float:
    """Mean absolute difference of pixels that are neighbours."""
    return (np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean()) / 2


def measure(paths: list[Path], size: int, crops: int) -> dict[str, list[list[tuple[float, float, float]]]]:
    """(difference, PSNR, contrast left) of every view, by form and area."""
    found: dict[str, list[list[tuple[float, float, float]]]] = {}
    for number, path in enumerate(paths):
        original = Image.open(path).convert("RGB")
        for name, form in forms(original, size).items():
            lists = found.setdefault(name, [[] for _ in AREAS])
            for area, values in zip(AREAS, lists):
                generator = random.Random(number)
                for _ in range(crops):
                    box = crop(generator, area, original.width / original.height)
                    a, b = view(original, box), view(form, box)
                    error = np.square(a - b).mean()
                    psnr = 10 * math.log10(255**2 / error) if error else math.inf
                    values.append((np.abs(a - b).mean(), psnr, contrast(b) / contrast(a)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="JPEG files")
    parser.add_argument("--size", type=int, default=256, help="shorter side of what is packed (pixels)")
    parser.add_argument("--crops", type=int, default=20, help="views per file and range of areas")
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.jpg"))
    print(f"{len(paths)} files, {options.crops} views each; medians: difference of 255, PSNR in dB, contrast left in %")
    print("| form |", " | ".join(f"{100 * low:.0f} to {100 * high:.0f} % of the area" for low, high in AREAS), "|")
    print("|---|" + "---|" * len(AREAS))
    for name, lists in measure(paths, options.size, options.crops).items():
        cells = []
        for values in lists:
            difference, psnr, left = (statistics.median(column) for column in zip(*values))
            cells.append(f"{difference:.1f}, {psnr:.1f}, {100 * left:.0f}")
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
