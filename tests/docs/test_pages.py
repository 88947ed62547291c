"""Every code block of the documentation runs, and every command that a page names can be parsed."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from simclr_fast import SimCLRAugment, SimCLREval
from simclr_fast.config import Config
from simclr_fast.data import Dataset
from simclr_fast.data.array_sets import mnist5k
from simclr_fast.recipes import RECIPES
from tests.docs.blocks import ROOT, blocks, check_command, commands, run_page
from tests.evaluation.conftest import demo_config, write_run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"embed.md"}  # tests/evaluation/test_embed.py runs its blocks on every format
SLOW = {"export.md"}  # ONNX
RUNNABLE = [
    page
    for page in PAGES
    if {block.language for block in blocks(page)} & {"python", "bash"} and page.name not in ELSEWHERE
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def given(page: Path) -> dict[str, Any]:
    """The names that a page's fragments take for granted."""
    rows = lambda: torch.randn(8, 16, requires_grad=True)
    names: dict[str, Any] = {"torch": torch, "z0": rows(), "z1": rows(), "SimCLRAugment": SimCLRAugment}
    names["images"] = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    names["model"] = lambda views: views.flatten(1)
    if page.name == "augment.md":
        names |= {"replace": dataclasses.replace, "aug": SimCLRAugment(32), "SimCLREval": SimCLREval}
    return names


def small_photos() -> Config:
    """The recipe `photos` at a size that takes a second."""
    config = RECIPES["photos"]
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, workers=1),
        augment=dataclasses.replace(config.augment, size=32),
        model=dataclasses.replace(config.model, model="resnet18", head_hidden=32),
        optimization=dataclasses.replace(config.optimization, batch_size=4, epochs=1),
    )


def few_digits() -> Dataset:
    """A sixteenth of the demo's digits."""
    whole = mnist5k()
    part = lambda source: source.subset(torch.arange(0, len(source), 16))
    return dataclasses.replace(whole, train=part(whole.train), labelled=part(whole.labelled), test=part(whole.test))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with some photos and a run, as the pages have them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "photos", small_photos())  # for calls that name no option
    monkeypatch.setattr("simclr_fast.data.datasets.mnist5k", few_digits)
    (tmp_path / "photos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{number}.jpg")
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.proof] * (page.name in SLOW), id=name(page)) for page in RUNNABLE]
)
def test_every_block_runs(page: Path, workplace: Path) -> None:
    if page.name in ("evaluation.md", "export.md"):
        write_run(workplace / "runs" / "demo", demo_config())
    run_page(page, given(page), {"PATH/TO/simclr_fast": str(ROOT)})


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_every_command_can_be_parsed(page: Path) -> None:
    for arguments in commands(page):
        check_command(arguments)


def test_pages_are_found() -> None:
    assert {"README.md", "losses.md", "replace_your_loss.md"} <= {page.name for page in RUNNABLE}
    assert sum(len(commands(page)) for page in PAGES) > 30
