"""Pictures of nearest neighbours: each query with the images most like it, named, or by one encoder beside another."""

import dataclasses
import functools
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from torch import Tensor

from simclr_fast.data import Source
from simclr_fast.evaluation.features import TAKEN_FILES
from simclr_fast.evaluation.pictures import FOUND_BOX, TRUE_BOX
from simclr_fast.visualize import new_figure, save, shrunk

PICTURE_FILE = "neighbours.png"
CELL, TEXT = 1.5, 0.5  # inches: side of an image in the picture, height of the text below it
GAP, HEAD = 0.12, 0.42  # inches between cells, and above them for the title
SMALL_SIDE = 192  # pixels of an image in the picture without names: twice what is drawn of it
SMALL_CELL, SMALL_GAP, GROUP_GAP, LINE = 0.66, 0.07, 0.2, 0.22  # inches, of the picture without names
THINNEST = 0.02  # inches that a side of an image has at least
TEXT_SIZE = 7  # points
QUERY = "#1f77b4"
CELL_COLOR, MISSING = "#f2f2f2", "#d0d0d0"  # around an image, and where one cannot be shown
# Fonts with letters that DejaVu Sans, which comes with matplotlib, lacks; those that are installed serve.
OTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Symbola",
)


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image of the picture: uint8 [C, H, W] of any size, or None where it cannot be read, and what stands below it.

    same: whether it is of the query's class; None where that is unknown.
    """

    image: Tensor | None
    name: str = ""
    similarity: float | None = None
    same: bool | None = None


def thumbnails(source: Source, indices: Tensor) -> list[Tensor]:
    """Images uint8 [C, H, W] on the CPU, in their own proportions, as large as the picture without names shows them."""
    return [shrunk(image.cpu(), SMALL_SIDE) for few in indices.split(TAKEN_FILES) for image in source.take(few)]


def draw(path: Path, lines: Sequence[Sequence[Shown]], title: str) -> Path:
    """A line for each query: the query, then its neighbours with their names and similarities; returns the path.

    Images keep their proportions. Names are shortened in the middle until they fit.
    """
    step, row = CELL + GAP, CELL + TEXT + GAP
    width, height = max(map(len, lines)) * step + 2 * GAP, len(lines) * row + HEAD
    figure = new_figure((width, height))
    # One axis in inches for all: an axis for each image takes many times as long to draw.
    axis = figure.add_axes((0, 0, 1, 1))
    for i, line in enumerate(lines):
        for j, shown in enumerate(line):
            left = GAP + j * step + (GAP if j else 0)  # the query stands apart
            top = height - HEAD - i * row
            _show(axis, shown, left, top, CELL, is_query=j == 0)
            _write(axis, shown, left + CELL / 2, top - CELL, is_query=j == 0)
    axis.text(GAP, height - 0.1, readable(title), va="top", fontsize=10, parse_math=False, family=_family())
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return save(figure, path)


def draw_side_by_side(
    path: Path, queries: Sequence[Shown], found: Mapping[str, Sequence[Sequence[Shown]]], title: str = ""
) -> Path:
    """A line for each query: the query, then under each heading of `found` its neighbours, without names.

    Returns the path. found: heading -> as many neighbours for each query, the most alike first.
    """
    step = SMALL_CELL + SMALL_GAP
    widths = [len(lines[0]) * step for lines in found.values()]
    starts = [2 * SMALL_GAP + step + GROUP_GAP + sum(widths[:i]) + i * GROUP_GAP for i in range(len(widths))]
    head = HEAD + LINE * len(title.splitlines())
    width, height = starts[-1] + widths[-1] + SMALL_GAP, len(queries) * step + head
    figure = new_figure((width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    for i, query in enumerate(queries):
        top = height - head - i * step
        _show(axis, query, 2 * SMALL_GAP, top, SMALL_CELL, is_query=True)
        for start, lines in zip(starts, found.values()):
            for j, shown in enumerate(lines[i]):
                _show(axis, shown, start + j * step, top, SMALL_CELL, is_query=False)
    style = {"va": "bottom", "parse_math": False, "fontsize": 10}
    for start, heading in zip([2 * SMALL_GAP, *starts], ["query", *found]):
        axis.text(start, height - head + SMALL_GAP, heading, **style)
    axis.text(2 * SMALL_GAP, height - SMALL_GAP, title, **(style | {"va": "top", "linespacing": 1.4}))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return save(figure, path)


def _show(axis: Axes, shown: Shown, left: float, top: float, cell: float, is_query: bool) -> None:
    """An image in the middle of its cell, as large as it can be there, and a frame around the cell."""
    middle = (left + cell / 2, top - cell / 2)
    background = MISSING if shown.image is None else CELL_COLOR
    axis.add_patch(Rectangle((left, top - cell), cell, cell, facecolor=background, linewidth=0, zorder=-1))
    if shown.image is None:
        axis.text(*middle, "cannot be read", ha="center", va="center", fontsize=TEXT_SIZE)
    else:
        height, width = shown.image.shape[-2:]
        halves = [max(THINNEST, cell * side / max(height, width)) / 2 for side in (width, height)]
        place = (middle[0] - halves[0], middle[0] + halves[0], middle[1] - halves[1], middle[1] + halves[1])
        pixels = shown.image.permute(1, 2, 0).squeeze(-1).numpy()
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=place, aspect="auto")
    is_known = shown.same is not None
    color = QUERY if is_query else {True: TRUE_BOX, False: FOUND_BOX, None: "#bbbbbb"}[shown.same]
    strength = 2.5 if is_query or is_known else 0.8
    frame = Rectangle((left, top - cell), cell, cell, fill=False, edgecolor=color, linewidth=strength, zorder=3)
    axis.add_patch(frame)


def _write(axis: Axes, shown: Shown, middle: float, bottom: float, is_query: bool) -> None:
    """Below an image: its similarity, the file's name and, in grey, its folder."""
    folder, _, name = shown.name.rpartition("/")
    first = "query" if is_query else f"{shown.similarity:.3f}"
    lines = [(first, "black", "bold"), (name, "black", "normal"), (folder, "#777777", "normal")]
    for k, (text, color, weight) in enumerate(lines):
        style = {"fontsize": TEXT_SIZE, "family": _family(), "weight": weight, "color": color, "parse_math": False}
        written = axis.text(middle, bottom - 0.05 - 0.145 * k, "", ha="center", va="top", **style)
        _fit(axis.figure, written, readable(text))


def _fit(figure: Figure, written: Text, text: str) -> None:
    """Set a text that is at most as wide as a cell: the longest that keeps as much of the beginning as of the end."""
    limit = CELL * figure.dpi

    def fits(shortened: str) -> bool:
        written.set_text(shortened)
        return written.get_window_extent().width <= limit

    if fits(text):
        return
    low, high = 0, len(text) - 1  # letters kept
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if fits(_shortened(text, kept)) else (low, kept - 1)
    written.set_text(_shortened(text, low))


def _shortened(text: str, kept: int) -> str:
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"


def readable(text: str) -> str:
    """Text in letters that the fonts here have; others as their numbers, \\u5199, so that names stay apart."""
    text = unicodedata.normalize("NFC", text)
    letters = _letters()
    return "".join(c if ord(c) in letters else c.encode("unicode_escape").decode() for c in text)


@functools.cache
def _family() -> list[str]:
    """DejaVu Sans and what other fonts are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


@functools.cache
def _letters() -> frozenset[int]:
    paths = [font_manager.findfont(font_manager.FontProperties(family=name)) for name in _family()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))
