"""The documentation's site: it builds without a warning, its links lead somewhere, and nothing comes from outside."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import simclr_fast
from simclr_fast.cli import COMMANDS, imported
from simclr_fast.config import Config, flag
from tools.docs.hooks import ROOT, with_links

LINKS = {"a": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
FETCHED = ("script", "img", "iframe", "source")  # and stylesheets; other links are followed by a click


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # Material's banner on what becomes of MkDocs is no warning of ours.
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    assert not [line for line in built.stderr.splitlines() if line.startswith("WARNING")]
    return folder


class Page(HTMLParser):
    """The ids of a page, and its links as (tag, attributes)."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.ids |= {named[name] for name in ("id", "name") if named.get(name)}
        if named.get(LINKS.get(tag, "")):
            self.links.append((tag, named))


@cache
def page_of(path: Path) -> Page:
    return Page(path.read_text())


def pages(site: Path) -> list[Path]:
    found = sorted(site.rglob("*.html"))
    assert len(found) > 25
    return found


def dead_links(site: Path) -> Iterator[str]:
    """Each link of a page to a file or an anchor that the site does not have."""
    for path in pages(site):
        if path.name == "404.html":  # its links are those of a server's root
            continue
        for tag, named in page_of(path).links:
            address = urlsplit(named[LINKS[tag]])
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not target.is_file() or not target.is_relative_to(site):
                yield f"{path.relative_to(site)}: {address.geturl()}"
            elif address.fragment and target.suffix == ".html":
                anchor = unquote(address.fragment)
                if anchor not in page_of(target).ids and not anchor.startswith("__"):  # of the search
                    yield f"{path.relative_to(site)}: {address.geturl()}"


def test_every_link_and_picture_is_there(site: Path) -> None:
    assert not list(dead_links(site))


def test_a_dead_link_would_be_noticed(tmp_path: Path) -> None:
    for name in ("reading.html", "scale.html"):
        links = '<a href="scale.html#nowhere"></a><a href="gone.html"></a><img src="gone.png">'
        (tmp_path / name).write_text(links + '<a href="#here" id="here"></a>')
    for number in range(25):
        (tmp_path / f"{number}.html").write_text("")
    dead = list(dead_links(tmp_path))
    assert len(dead) == 6
    assert "reading.html: scale.html#nowhere" in dead


def test_nothing_is_fetched_from_the_network(site: Path) -> None:
    for path in pages(site):
        for tag, named in page_of(path).links:
            if tag in FETCHED or (tag == "link" and named.get("rel") == "stylesheet"):
                assert not urlsplit(named[LINKS[tag]]).netloc, f"{path.relative_to(site)}: {named}"


def test_every_public_name_has_its_place(site: Path) -> None:
    ids = page_of(site / "reference" / "python.html").ids
    for name in set(simclr_fast.__all__) - {"__version__"}:
        value = getattr(simclr_fast, name)
        assert f"{value.__module__}.{name}" in ids, name


def test_examples_are_code_and_parameters_a_list(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text()
    said = [inspect.getdoc(getattr(simclr_fast, name)) for name in simclr_fast.__all__ if name != "__version__"]
    assert text.count('class="gp"') == "".join(said).count(">>> ") > 4, "the section of examples is Examples:"
    assert not [one for one in said if "Args:\n" not in one]


def test_every_page_of_the_menu_stands_there_once() -> None:
    menu = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(menu) == len(set(menu)) > 20
    assert {"changelog.md", "embed.md", "reference/python.md"} <= set(menu)


def test_every_command_and_option_is_explained(site: Path) -> None:
    text = (site / "reference" / "cli.html").read_text()
    assert set(COMMANDS) <= page_of(site / "reference" / "cli.html").ids
    groups = [value for value in vars(Config()).values() if dataclasses.is_dataclass(value)]
    groups += [imported(command.options) for command in COMMANDS.values() if imported(command.options) is not Config]
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    missing = [name for name in names if f"<code>{flag(name)}</code>" not in text]
    assert set(missing) <= {"data"}, "pack's field of that name is a group of options"
    assert len(names) > 100


@pytest.mark.parametrize(
    ("file", "page", "link", "expected"),
    [
        ("docs/proof.md", "proof.md", "../proof/kept.py", "source/proof/kept.py.md"),
        ("docs/tables/model.md", "tables/model.md", "../../csrc/ntxent.h", "../source/csrc/ntxent.h.md"),
        ("docs/reading.md", "reading.md", "../CONTRIBUTING.md#rules", "contributing.md#rules"),
        ("docs/reading.md", "reading.md", "../README.md", "index.md"),
        ("docs/proof.md", "proof.md", "tables/model.md", "tables/model.md"),
        ("docs/index.md", "index.md", "tutorials/pretrain_and_look.ipynb", "tutorials/pretrain_and_look.md"),
        ("CONTRIBUTING.md", "contributing.md", "docs/reading.md#glossary", "reading.md#glossary"),
        ("docs/proof.md", "proof.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("docs/proof.md", "proof.md", "../gone.md", "../gone.md"),  # mkdocs then says that it is missing
    ],
)
def test_links_of_the_repository_become_those_of_the_site(file: str, page: str, link: str, expected: str) -> None:
    text = "See [the [0] rows]({}), `z[0](x)`, and [below](#below)."
    assert with_links(text.format(link), ROOT / file, page) == text.format(expected)
