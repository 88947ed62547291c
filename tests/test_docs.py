"""What the documents name is there: links, files and folders, commands and options of make and python -m."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Tables are written by programs, and name what was there when they were measured.
WRITTEN = [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "tables" or page.stem == "README"
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *WRITTEN]
TOP = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")))


def spelled_out(pattern: str) -> list[str]:
    """`a/{b,c}.py` -> `a/b.py`, `a/c.py`."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    head, tail = pattern[: braces.start()], pattern[braces.end() :]
    return [path for choice in braces[1].split(",") for path in spelled_out(head + choice + tail)]


def code(text: str) -> list[str]:
    """What stands between single backticks, and the lines of code blocks."""
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not re.match(r"https?:", link) and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    named = [
        path for text in code(page.read_text()) for path in re.findall(rf"(?<![\w/.])(?:{TOP})/[^\s:`'\"()]+", text)
    ]
    generated = ("runs/", "build/", "dist/", "site/")
    missing = [
        path
        for pattern in named
        for path in spelled_out(pattern.rstrip(".,;"))
        if not path.startswith(generated) and "<" not in path and not list(ROOT.glob(path.rstrip("/")))
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_can_be_run(page: Path) -> None:
    modules = set(re.findall(r"python -m ([\w.]+)", page.read_text()))
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_targets_of_make_are_there(page: Path) -> None:
    targets = set(re.findall(r"`make ([\w-]+)`|^ {4}make ([\w-]+)", page.read_text(), re.MULTILINE))
    lines = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {target for line in lines for target in line.split()}
    assert not {a or b for a, b in targets} - known
