"""The command `embed`: features of every image of a data set, nearest neighbours as a picture, near-duplicates.

All of it goes on from what is there: features are made once, and neighbours of other queries are found without them
being made again.
"""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simclr_fast.data import Dataset
from simclr_fast.data.ignored import IgnoredFile
from simclr_fast.data.messages import on_one_line
from simclr_fast.data.parts import AllImages, digest_of, parts_of
from simclr_fast.data.sources import EncodedImages
from simclr_fast.data.unreadable import BadImageError, unreadable_entry
from simclr_fast.errors import ConfigError, DataError
from simclr_fast.evaluation import duplicates
from simclr_fast.evaluation.embedding import Encoder, embed_missing
from simclr_fast.evaluation.feature_set import MANIFEST, FeatureSet
from simclr_fast.evaluation.features import preprocess_of
from simclr_fast.evaluation.neighbour_picture import PICTURE_FILE, Shown, draw
from simclr_fast.evaluation.neighbours import nearest_rows
from simclr_fast.evaluation.run import Run
from simclr_fast.evaluation.session import Session
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.lock import claim
from simclr_fast.process import autocast_dtype
from simclr_fast.run_files import write_results
from simclr_fast.visualize import shrunk

NEIGHBOURS_FILE = "neighbours.json"
SAMPLES = 6  # images whose neighbours are shown where no query is named
SHOWN_IN_TABLE = 3  # neighbours of a query on the console

log = logging.getLogger(__name__)


def main(session: Session) -> dict[str, Any]:
    """Make the features that are missing, then the picture of neighbours, then the list of near-duplicates."""
    options, run, root = session.options, session.run, session.folder
    if run.is_export and options.data is None and options.dataset is None:
        raise ConfigError("--data: an exported backbone does not say which images; pass the folder that holds them")
    with claim(root, "another process embeds"):
        queries = _read_queries(options.query)  # before hours of work rather than after them
        dataset = session.data(list_ignored=False)  # not before it is clear that the folder is for these images
        images = _images(dataset, options.split, session.data_options.data)
        autocast = autocast_dtype(options.amp_dtype, session.device)
        encoder = Encoder(run.encoder(), preprocess_of(run), run.channels, session.device, autocast)
        labelled = any(bool((part.codes >= 0).any()) for part in images.parts.values())
        found = FeatureSet.open(
            root,
            {
                "checkpoint": digest_of_weights(run),
                "data": str(session.data_options.data.resolve()),
                "split": options.split,
                "format": options.format,
                "dtype": options.dtype,
                "amp_dtype": "float32" if autocast is None else str(autocast).removeprefix("torch."),
                "batch_size": options.batch_size,
                "shard_size": options.shard_size,
                "images": _digest(images, dataset, options.workers),
            },
            {
                "images": len(images),
                "width": encoder.width(),
                "labelled": labelled,
                "classes": None if dataset.classes is None else list(dataset.classes),
            },
        )
        if found.is_whole:
            session.console.print(f"{root}: embedded already; its files were verified", markup=False, soft_wrap=True)
        else:
            embed_missing(found, images, encoder, options.batch_size, options.workers)
            found.end()
        _list_ignored(root, dataset, images, found)
        view = _View(found, images, found.numbers().tolist())
        near = _neighbours(view, encoder, queries, options)
        alike = _duplicates(view, session)
        results = {
            "data": on_one_line(str(session.data_options.data)),
            "images": len(images),
            "rows": found.rows,
            "width": found.journal["width"],
            "files": sorted({name for shard in found.shards for name in shard["files"]}),
            "left_out": [[images.name(number), message] for number, message in found.left_out],
            "neighbours": near,
            "duplicates": alike,
        }
        tables = (_summary(results), _table(near))
        names = results["files"]
        if options.format != "npy" and len(names) > 1:  # a file for each shard
            names = [names[0].replace("-00000-", "-*-")]
        lists = () if alike is None else (duplicates.CSV_FILE, duplicates.JSON_FILE)
        names = (*names, MANIFEST, PICTURE_FILE, NEIGHBOURS_FILE, *lists)
        return session.finish(results, *tables, files=tuple(root / name for name in names))


@dataclasses.dataclass(frozen=True)
class _View:
    """The rows of a whole feature set with the images that they are of. numbers: of each row's image."""

    found: FeatureSet
    images: AllImages
    numbers: list[int]

    def name(self, row: int) -> str:
        return self.images.name(self.numbers[row])

    def label(self, row: int) -> int:
        return self.images.code(self.numbers[row])

    def picture(self, row: int) -> Tensor | None:
        """The image, shrunk; None where it cannot be read any more."""
        try:
            return shrunk(self.images.load(self.numbers[row]).cpu())
        except BadImageError as error:
            log.warning("%s", error)
            return None

    def is_file(self, row: int, path: Path) -> bool:
        """Whether the image of a row is that file."""
        own = self.images.path(self.numbers[row])
        return own is not None and own.exists() and own.samefile(path)

    def read(self, row: int) -> bytes:
        """The bytes of a row's image. Raises DataError."""
        try:
            return self.images.read(self.numbers[row])
        except OSError as error:
            raise DataError(f"{self.images.message_name(self.numbers[row])}: {error.strerror}") from error


def digest_of_weights(run: Run) -> str:
    """What tells a backbone and its test-time view from others; the same for a checkpoint and for what it exported."""
    model, augment = run.config.model, run.config.augment
    about = (model.model, model.model_kwargs, model.stem, model.norm, augment.size, augment.mean, augment.std)
    digest = hashlib.sha256(repr(about).encode())
    for name, value in sorted(run.weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _images(dataset: Dataset, split: str, root: Path) -> AllImages:
    """Raises ConfigError where the data set has no such split."""
    parts = parts_of(dataset)
    if split != "all":
        if split not in parts:
            raise ConfigError(f"--split {split}: the data set has only {', '.join(parts)}; pass one of them, or all")
        parts = {split: parts[split]}
    return AllImages(parts, root)


def _digest(images: AllImages, dataset: Dataset, threads: int) -> str:
    digest = hashlib.sha256(repr(dataset.classes).encode(errors="surrogateescape"))
    for name, part in images.parts.items():
        digest.update(f"{name} {digest_of(part.source, part.codes, threads)}\n".encode())
    return digest.hexdigest()[:16]


def _list_ignored(root: Path, dataset: Dataset, images: AllImages, found: FeatureSet) -> None:
    """List all that has no feature: what the data set ignores, and what cannot be read."""
    names = ((images.message_name(number), message) for number, message in found.left_out)
    unreadable = [unreadable_entry(name, message) for name, message in names]
    IgnoredFile(root).add([*dataset.ignored, *unreadable])


def _read_queries(paths: tuple[Path, ...]) -> list[tuple[Path, Tensor]]:
    """The images to look for, uint8 [3, H, W]. Raises ConfigError with the first that cannot be read."""
    source = EncodedImages(len(paths), lambda i: paths[i].read_bytes(), lambda i: str(paths[i]))
    queries = []
    for number, path in enumerate(paths):
        try:
            image = source.decode(number)
        except BadImageError as error:
            raise ConfigError(f"--query {error}; pass a file with an image") from error
        queries.append((path, image))
    return queries


def _neighbours(
    view: _View, encoder: Encoder, queries: list[tuple[Path, Tensor]], options: Any
) -> list[dict[str, Any]]:
    """The neighbours of the queries, or of some images of the data set where there are none, by name; draws them."""
    count = options.neighbours
    if queries:
        features = encoder(torch.cat([encoder.preprocess([image]) for _, image in queries]))
        similarity, rows = nearest_rows(view.found.features(), features, count + 1)
        # A query that lies in the data set is not its own neighbour.
        near = [
            [(row, value) for row, value in zip(*line) if not view.is_file(row, path)][:count]
            for (path, _), *line in zip(queries, rows.tolist(), similarity.tolist())
        ]
        asked = [(Shown(shrunk(image), on_one_line(str(path))), -1) for path, image in queries]
        title = "Nearest images by cosine similarity"
    else:
        generator = torch.Generator().manual_seed(options.seed)
        chosen = torch.randperm(view.found.rows, generator=generator)[:SAMPLES]
        similarity, rows = nearest_rows(view.found.features(), view.found.at(chosen), count, chosen.tolist())
        near = [list(zip(*line)) for line in zip(rows.tolist(), similarity.tolist())]
        asked = [(Shown(view.picture(row), view.name(row)), view.label(row)) for row in chosen.tolist()]
        title = f"Random images and their nearest others by cosine similarity (seed {options.seed})"
    lines, results = [], []
    for (query, label), of_query in zip(asked, near):
        shown = [_shown(view, row, value, label) for row, value in of_query]
        lines.append([query, *shown])
        found = [{"name": one.name, "similarity": round(one.similarity, 6)} for one in shown]
        results.append({"query": query.name, "neighbours": found})
    if any(one.same is not None for line in lines for one in line):
        title += "; green: same class, red: another"
    draw(view.found.root / PICTURE_FILE, lines, title)
    write_results(view.found.root / NEIGHBOURS_FILE, {"queries": results})
    return results


def _shown(view: _View, row: int, similarity: float, label: int) -> Shown:
    own = view.label(row)
    return Shown(view.picture(row), view.name(row), similarity, None if min(own, label) < 0 else own == label)


def _duplicates(view: _View, session: Session) -> dict[str, Any] | None:
    """Write the near-duplicates, and say how many there are; None where they are not wanted or too many."""
    threshold, root = session.options.duplicates, session.folder
    for name in (duplicates.CSV_FILE, duplicates.JSON_FILE):
        (root / name).unlink(missing_ok=True)  # of another threshold
    if threshold is None:
        return None
    try:
        units = duplicates.unit_rows(view.found.features(), view.found.rows)
        pairs = duplicates.similar_pairs(units, threshold, session.device)
    except duplicates.TooManyPairsError as error:
        log.warning("%s: no list is written; pass a higher --duplicates", error)
        return None
    same = duplicates.identical(pairs, view.read)
    groups = duplicates.groups_of(pairs, view.found.rows)
    duplicates.write(root, pairs, same, groups, view.name, threshold)
    return {"threshold": threshold, "groups": len(groups), "pairs": len(pairs), "identical": int(same.sum())}


def _summary(results: dict[str, Any]) -> ResultTable:
    alike = results["duplicates"]
    rows = [
        ["images with features", str(results["rows"])],
        ["left out, as unreadable", str(len(results["left_out"]))],
        ["numbers of a feature", str(results["width"])],
    ]
    if alike is not None:
        rows += [
            [f"pairs above {alike['threshold']:g}", str(alike["pairs"])],
            ["of them identical files", str(alike["identical"])],
            ["groups that they form", str(alike["groups"])],
        ]
    return ResultTable("Embedded", ["", "count"], rows)


def _table(near: list[dict[str, Any]]) -> ResultTable:
    columns = ["query", *(f"{number}." for number in range(1, SHOWN_IN_TABLE + 1))]
    rows = [
        [
            one["query"],
            *(f"{found['name']} ({found['similarity']:.3f})" for found in one["neighbours"][:SHOWN_IN_TABLE]),
        ]
        for one in near
    ]
    return ResultTable(
        "Nearest images (cosine similarity)", columns, [row + [""] * (len(columns) - len(row)) for row in rows]
    )
