"""Unreadable images: which one takes their place, who counts them, and when they are too many."""

import dataclasses
from pathlib import Path

import pytest
import torch

from simclr_fast.config import DataOptions
from simclr_fast.data import Dataset, EncodedImages, load_dataset
from simclr_fast.data.ignored import IGNORED_FILE
from simclr_fast.data.loading import EncodedLoader
from simclr_fast.data.sampler import EpochSampler
from simclr_fast.data.unreadable import BadImageError, BadImages, NoneReadableError, allowance, load_or_replace, walk
from simclr_fast.errors import DataError
from simclr_fast.evaluation.features import Pixels, Preprocess, embed

CPU = torch.device("cpu")


def reader(*broken: int):
    def load(index: int) -> torch.Tensor:
        if index in broken:
            raise BadImageError(f"file {index}: broken")
        return torch.tensor(index)

    return load


def test_the_walk_is_the_image_then_its_class_then_all() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 1])
    places = list(walk(2, 7, labels))
    assert places[0] == 2
    assert sorted(places[1:3]) == [0, 4], "the others of class 0"
    assert sorted(places[3:]) == [0, 1, 3, 4, 5, 6]
    assert places == list(walk(2, 7, labels)), "a resumed run sees the same"
    assert list(walk(3, 100, None)) == [(3 + 7919 * k) % 100 for k in range(10)]


@pytest.mark.parametrize("size", [2, 9, 7919, 2 * 7919, 7907])
def test_the_walk_never_returns(size: int) -> None:
    places = list(walk(1, size, None))
    assert len(set(places)) == len(places) == min(10, size)


def test_every_unreadable_image_on_the_walk_is_named_and_no_other() -> None:
    bad: dict[int, str] = {}
    second, third = (5 + 7919) % 100, (5 + 2 * 7919) % 100
    assert load_or_replace(reader(5, second), 5, 100, bad) == third
    assert bad == {5: "file 5: broken", second: f"file {second}: broken"}


def test_what_was_replaced_before_is_told_as_well_where_nothing_can_be_read() -> None:
    bad = {7: "of the same chunk, and replaced"}
    with pytest.raises(NoneReadableError, match="^3 unreadable images in a row, the last: ") as raised:
        load_or_replace(reader(0, 1, 2), 0, 3, bad)
    assert raised.value.bad.keys() == {7, 0, 1, 2}


def test_the_replacement_is_of_the_same_class_while_there_is_one() -> None:
    labels = torch.tensor([0, 1, 1, 0, 2])
    assert load_or_replace(reader(0), 0, 5, {}, labels) == 3
    assert load_or_replace(reader(4), 4, 5, {}, labels) != 4, "the only one of its class"


def test_as_many_as_are_allowed_pass_and_one_more_does_not(caplog) -> None:
    bad = BadImages(allowed=2)
    bad.note({"a": "a: broken", "b": "b: broken"})
    bad.note({"a": "a: broken"})
    assert len(bad) == 2, "each once"
    assert caplog.text.count("unreadable image, replaced by another: a: broken") == 1
    with pytest.raises(
        DataError, match=r"^3 unreadable images, more than --max-bad-images allows \(2 of.*: c: broken$"
    ):
        bad.note({"c": "c: broken"})
    assert caplog.messages[-1] == "unreadable image: c: broken", "nothing takes its place"


@pytest.mark.parametrize(
    ("share", "images", "allowed"),
    [(0.01, 40, 1), (0.01, 100, 1), (0.01, 101, 2), (0.0, 40, 0), (0.07, 100, 7), (0.1, 299, 30), (1.0, 3, 3)],
)
def test_the_allowance_is_the_share_rounded_up(share: float, images: int, allowed: int) -> None:
    assert allowance(share, images) == allowed


def broken_folder(root: Path, *names: str, share: float) -> EncodedImages:
    for name in names:
        (root / "train" / name).write_bytes(b"broken")
    return load_dataset(DataOptions(dataset="imagefolder", data=root, max_bad_images=share)).train


def test_evaluation_sees_another_image_of_the_class_and_counts(folder_root: Path, caplog) -> None:
    source = broken_folder(folder_root, "dog/0.png", share=0.05)  # image 8; 0.8 of 16 may be unreadable, rounded up
    features = embed(Pixels(), source, Preprocess(8, (0.5,), (0.5,)), CPU)
    other = 8 + (0 + 7919) % 8
    assert torch.equal(features[8], features[other])
    assert len(features.unique(dim=0)) == 15
    assert list(source.bad.messages) == [source.name(8)]
    assert caplog.text.count("unreadable image, replaced by another") == 1
    Path(source.name(2)).write_bytes(b"broken")
    with pytest.raises(DataError, match="2 unreadable images, more than --max-bad-images allows"):
        embed(Pixels(), source, Preprocess(8, (0.5,), (0.5,)), CPU)


def test_training_evaluation_and_parts_count_together(folder_root: Path) -> None:
    source = broken_folder(folder_root, "dog/3.jpg", "cat/2.jpg", share=0.125)
    part = source.subset(torch.tensor([11, 12, 2, 1]))
    assert torch.equal(part.decoded(2), source.decode(1)), "of the part, the other of the class"
    assert part.labels.tolist() == [1, 1, 0, 0]
    loader = EncodedLoader(source, EpochSampler(16, 16, seed=0), CPU, DataOptions(workers=0))
    list(loader.epoch(0))
    part.decoded(0)
    assert loader.bad is source.bad is part.bad
    assert set(source.bad.messages) == {source.name(11), source.name(2)}
    Path(source.name(12)).write_bytes(b"broken")
    with pytest.raises(DataError, match="3 unreadable images"):
        part.decoded(1)


class OtherProcess:
    """Stands in for torch.distributed with one other process, which has met unreadable images of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, known: dict[str, str]):
        self.known, self.told = known, None
        for name, result in (("is_initialized", True), ("get_world_size", 2), ("get_rank", 0)):
            monkeypatch.setattr(torch.distributed, name, lambda result=result: result)
        monkeypatch.setattr(torch.distributed, "all_gather_object", self.gather)

    def gather(self, into: list, mine: dict[str, str]) -> None:
        self.told = dict(mine)
        into[:] = [dict(mine), self.known]


def rank_0_of_2(source: EncodedImages) -> EncodedLoader:
    return EncodedLoader(source, EpochSampler(16, 16, seed=0, rank=0, world_size=2), CPU, DataOptions(workers=0))


def met_by_rank_0(source: EncodedImages) -> list[int]:
    return EpochSampler(16, 16, seed=0, rank=0, world_size=2).steps(0)[0].tolist()


def test_a_process_judges_by_the_whole_data_set_and_learns_what_others_met(folder_root: Path, monkeypatch) -> None:
    """Two of 16 may be unreadable. One process meets both: that is not too many, though it meets half of the images."""
    source = broken_folder(folder_root, share=2 / 16)
    met = met_by_rank_0(source)
    elsewhere = next(index for index in range(16) if index not in met)
    for index in met[:2]:
        Path(source.name(index)).write_bytes(b"broken")
    other = OtherProcess(monkeypatch, {})
    loader = rank_0_of_2(source)
    assert len(list(loader.epoch(0))) == 1
    assert set(other.told) == {source.name(index) for index in met[:2]}
    other.known = {source.name(elsewhere): "broken", source.name(met[0]): "broken"}
    with pytest.raises(DataError, match="3 unreadable images"):  # one of them both have met
        list(loader.epoch(0))


def test_the_list_of_the_run_has_what_any_process_met(folder_root: Path, tmp_path: Path, monkeypatch) -> None:
    source = broken_folder(folder_root, share=0.5)
    first = met_by_rank_0(source)[0]
    Path(source.name(first)).write_bytes(b"broken")
    other = OtherProcess(monkeypatch, {"elsewhere.jpg": "elsewhere.jpg: torn"})
    Dataset(source, ignored=(("notes.txt", "no image (.txt)"),)).list_ignored(tmp_path)
    loader = rank_0_of_2(source)
    list(loader.epoch(0))
    lines = (tmp_path / IGNORED_FILE).read_text().splitlines()
    list(loader.epoch(0))
    assert lines == (tmp_path / IGNORED_FILE).read_text().splitlines(), "each once"
    assert lines[0] == "notes.txt\tno image (.txt)"
    assert lines[1].startswith(f"{source.name(first)}\tunreadable: Unsupported image file")
    assert lines[2:] == ["elsewhere.jpg\tunreadable: torn"]
    assert set(other.told) == {source.name(first), "elsewhere.jpg"}


def test_one_process_asks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    other = OtherProcess(monkeypatch, {"x": "x: broken"})
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    BadImages().share_with_others()
    assert other.told is None


def test_every_image_is_listed_where_none_can_be_read(tmp_path: Path, caplog) -> None:
    source = EncodedImages(3, lambda index: b"", "picture {}".format, bad=BadImages(allowed=3))
    Dataset(source).list_ignored(tmp_path)
    with pytest.raises(DataError, match="3 unreadable images in a row, the last: .*; mend them or take them away"):
        source.decoded(1)
    listed = (tmp_path / "ignored.txt").read_text().splitlines()
    assert sorted(listed) == [f"picture {index}\tunreadable: the file is empty" for index in range(3)]
    assert caplog.text.count("unreadable image: picture") == 3, "nothing takes their places"


def test_all_parts_are_listed_in_one_file(tmp_path: Path) -> None:
    parts = [EncodedImages(3, [b"x", b"", b"y"].__getitem__, f"{name} {{}}".format) for name in ("a", "b", "c")]
    Dataset(parts[0], parts[1], parts[2]).list_ignored(tmp_path)
    for part in parts:
        part.bad.allowed = 3
        with pytest.raises(NoneReadableError):
            part.decoded(1)
    listed = (tmp_path / "ignored.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in listed) == [f"{name} {k}" for name in "abc" for k in range(3)]


def test_a_data_set_made_by_hand_allows_none() -> None:
    source = EncodedImages(3, [b"x", b"", b"y"].__getitem__, "picture {}".format)
    with pytest.raises(DataError, match="3 unreadable images, more than .*; the last: picture"):
        source.decoded(1)
    assert dataclasses.replace(source, labels=torch.zeros(3)).bad is source.bad
