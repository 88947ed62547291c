"""What mkdocs calls while it builds the site: pages made of the code, and links that lead out of docs/.

A page's links are those of the repository, so that they work where it is browsed. On the site, a link to a page outside
docs/ leads to its copy (COPIED), a link to any other file of the repository to a page that shows that file.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs import notebook, reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
SOURCES = "source"  # the folder of the pages that show files
LANGUAGES = {
    ".py": "python",
    ".h": "cpp",
    ".cpp": "cpp",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".toml": "toml",
    ".yml": "yaml",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^()\s#]+)(#[^()\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made while the site is built."""
    made = {"reference/python.md": reference.python_page(), "reference/cli.md": reference.command_page()}
    for path in (ROOT / DOCS).rglob("*.ipynb"):
        made[path.with_suffix(".md").relative_to(ROOT / DOCS).as_posix()] = notebook.page(path)
    for name, page in COPIED.items():
        if (ROOT / name).exists() and files.get_file_from_path(page) is None:
            made[page] = moved(ROOT / name, page)
    for name in sorted(files_linked_to([*(ROOT / DOCS).rglob("*.md"), *(ROOT / name for name in COPIED)])):
        made[f"{SOURCES}/{name}.md"] = source_page(ROOT / name)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the page's links that leave docs/ to the pages of the site."""
    source = page.file.abs_src_path
    return markdown if source is None else with_links(markdown, Path(source), page.file.src_uri)


def moved(file: Path, page: str) -> str:
    """The text of a page outside docs/, with links that hold at its place on the site."""
    return with_links(file.read_text(), file, page)


def with_links(text: str, file: Path, page: str) -> str:
    """The text of a file of the repository, with the links that it needs as a page of the site."""

    def replaced(match: re.Match[str]) -> str:
        target = place_of(file, match[1])
        return (posixpath.relpath(target, posixpath.dirname(page) or ".") if target else match[1]) + (match[2] or "")

    return LINK.sub(replaced, text)


def place_of(file: Path, link: str) -> str | None:
    """The page of the site for a file's relative link; None for one that is no file of the repository."""
    target = (file.parent / link).resolve()
    if not target.is_file() or not target.is_relative_to(ROOT):
        return None
    name = target.relative_to(ROOT).as_posix()
    if name.startswith(f"{DOCS}/"):
        return re.sub(r"\.ipynb$", ".md", name.removeprefix(f"{DOCS}/"))
    return COPIED.get(name, f"{SOURCES}/{name}.md")


def files_linked_to(pages: list[Path]) -> set[str]:
    """The files of the repository, by their path, that pages link to and that are no pages of the site."""
    return {target for page in pages if page.exists() for target in _sources(page)}


def _sources(page: Path) -> Iterator[str]:
    for match in LINK.finditer(page.read_text()):
        target = place_of(page, match[1])
        if target is not None and target.startswith(f"{SOURCES}/"):
            yield target.removeprefix(f"{SOURCES}/").removesuffix(".md")


def source_page(path: Path) -> str:
    """A page that shows one file."""
    language = LANGUAGES.get(path.suffix, "text")
    return f"# {path.relative_to(ROOT)}\n\n````{language}\n{path.read_text()}````\n"
