"""One self-contained HTML page: pictures inline, no script, nothing fetched."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The policy forbids every request: what is not in the file is not shown.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }}
img {{ max-width: 100%; max-height: 640px; display: block; margin: .5rem 0; }}
.scroll {{ overflow-x: auto; }}
.wide {{ margin-inline: calc(50% - min(50vw - 1rem, 750px)); }}
.wide img {{ max-width: none; max-height: none; width: max(100%, 1200px); }}
.hint {{ display: none; }}
@media (max-width: 1250px) {{ .wide + .hint {{ display: block; }} }}
@media (max-width: 700px) {{ .scroll img {{ max-width: none; max-height: none; min-width: 660px; }} }}
@media (max-width: 700px) {{ .hint {{ display: block; }} }}
table {{ border-collapse: collapse; margin: .8rem 0; }}
caption {{ text-align: left; color: #555; padding-bottom: .3rem; }}
th, td {{ padding: .25rem .9rem; border-bottom: 1px solid #eee; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
table.plain td {{ text-align: left; }}
.groups {{ columns: 20rem; }} .groups table {{ break-inside: avoid; margin: 0 0 .8rem; }}
thead th {{ border-bottom: 2px solid #888; }}
nav a {{ margin-right: 1rem; white-space: nowrap; }}
p.note {{ color: #555; font-size: .9rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
<nav>{links}</nav>
{sections}
</body>
</html>
"""

_HINT = '<p class="note hint">The picture is wider than the window: move it sideways.</p>'


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the HTML below it. files: the pictures that were drawn for it."""

    title: str
    body: str
    files: tuple[Path, ...] = ()

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


def render(title: str, sections: Sequence[Section]) -> str:
    """The page as text."""
    links = "\n".join(f'<a href="#{s.anchor}">{html.escape(s.title)}</a>' for s in sections)
    bodies = "\n".join(f'<h2 id="{s.anchor}">{html.escape(s.title)}</h2>\n{s.body}' for s in sections)
    return _PAGE.format(title=html.escape(title), links=links, sections=bodies)


def facts(values: dict[str, str]) -> Section:
    """The section that opens the page."""
    return Section("The run", table([], [[name, value] for name, value in values.items()], ""))


def picture(path: Path, text: str, wide: bool = False) -> str:
    """A PNG file, inline, below a sentence that says what it shows; in a narrow window it is moved sideways.

    wide: its letters would be too small in the width of the text: it takes that of the window.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(text or path.stem)}" src="data:image/png;base64,{data}">'
    return f'{note(text)}<div class="scroll{" wide" if wide else ""}">{image}</div>{_HINT}'


def note(text: str) -> str:
    """A sentence in small print; nothing for an empty one."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def options(groups: dict[str, Any]) -> str:
    """The options of a run, a table per group."""
    tables = [
        table([], [[key, _plain(value)] for key, value in values.items()], name)
        for name, values in groups.items()
        if isinstance(values, dict)
    ]
    return f'<div class="groups">{"".join(tables)}</div>'


def _plain(value: Any) -> str:
    """As it is written on the command line, with six digits of a number."""
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of text cells; without a head where there are no columns, without a caption where that is empty."""
    cells = lambda tag, row: "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row) + "</tr>"
    head = f"<thead>{cells('th', columns)}</thead>" if columns else ""
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "".join(cells("td", row) for row in rows)
    kind = "" if columns else ' class="plain"'
    # Wider than the window, it is moved sideways and nothing of it is cut off.
    return f'<div class="scroll"><table{kind}>{title}{head}<tbody>{body}</tbody></table></div>'
