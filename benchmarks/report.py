"""Turns a results file into one page of tables and plots.

    python -m benchmarks.report RESULTS.json [--against OLD.json] [--readme [README.md]]

Writes report.md, report.html (self-contained) and the plots beside the results; with --readme also the README's table
and docs/images/bench.png.
"""

import argparse
import base64
import html
import json
import sys
from pathlib import Path

import markdown

from benchmarks import report_plots, report_readme, report_tables

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { padding: .25rem .55rem; border-bottom: 1px solid #d0d7de; text-align: right; white-space: nowrap }
td, th { font-size: 13.5px; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
h2 { margin-top: 2.5rem; border-bottom: 2px solid #d0d7de }
h3 { margin: 1.8rem 0 .3rem }
img { display: block; max-width: 100%; width: 56rem; margin: 1rem 0 }
"""


def load(path: Path) -> dict:
    """The JSON that `pytest --benchmark-json` wrote; exits with a line that says what is wrong with it."""
    try:
        results = json.loads(path.read_text())
        results["machine_info"]["simclr_fast"]
        return results
    except FileNotFoundError:
        raise SystemExit(f"report: {path} does not exist; make it with `make bench`") from None
    except (json.JSONDecodeError, KeyError):
        raise SystemExit(f"report: {path} is no results file of this project; make one with `make bench`") from None


def suites(results: dict) -> dict[str, list[dict]]:
    """extra_info of every case, by suite."""
    found: dict[str, list[dict]] = {}
    for benchmark in results["benchmarks"]:
        info = benchmark["extra_info"]
        found.setdefault(info["suite"], []).append({**info, "name": benchmark["name"]})
    return found


def write(path: Path, against: Path | None) -> Path:
    """Writes the page and its plots beside the results; returns the Markdown file."""
    results, old = load(path), load(against) if against else None
    found = suites(results)
    plots = report_plots.draw(found, path.parent, report_tables.label(results))
    text, body = [], []
    for section in report_tables.sections(results, found, old, suites(old) if old else None):
        text.append(section.text)
        body.append(markdown.markdown(section.text, extensions=["tables"]))
        for plot in (plot for plot in plots if plot.suite == section.suite):
            text.append(f"![{plot.title}]({plot.path.name})")
            data = base64.b64encode(plot.path.read_bytes()).decode()
            body.append(f'<img alt="{html.escape(plot.title)}" src="data:image/png;base64,{data}">')
    target = path.parent / "report.md"
    target.write_text("\n\n".join(text) + "\n")
    head = f'<meta charset="utf-8"><title>simclr_fast benchmarks</title><style>{STYLE}</style>'
    page = f"<!doctype html><html lang='en'>{head}<body>{''.join(body)}</body></html>\n"
    target.with_suffix(".html").write_text(page)
    return target


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON written by `make bench`")
    parser.add_argument("--against", type=Path, help="an earlier results file to compare with")
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="?",
        const=Path("README.md"),
        help="also write the table and the plot of this README (default README.md); for a run of `make bench` on a CPU",
    )
    options = parser.parse_args(arguments)
    sys.stdout.write(f"{write(options.results, options.against)}\n")
    if options.readme:
        results = load(options.results)
        report_readme.write(results, suites(results), options.readme)


if __name__ == "__main__":
    main()
