"""The field's correctness table: python -m benchmarks.correctness [--write [PAGE]] [--losses ntxent clip ...]

Runs every importable implementation of every loss over hard inputs, dtypes and temperatures, and on two processes;
prints the page, or writes it to docs/correctness.md.
"""

import argparse
import datetime
import logging
import sys
import time
from pathlib import Path

import torch

from benchmarks.correctness_cases import DTYPES, LOSSES, TEMPERATURES, cases, inputs
from benchmarks.correctness_implementations import Implementation, modules, of_loss
from benchmarks.correctness_measures import graph_breaks, outcome, peak_mib
from benchmarks.correctness_page import Row, page
from benchmarks.correctness_ranks import CASE, scales
from benchmarks.environment import ROOT, commit_of_checkout, environment
from benchmarks.harness import in_a_line

PAGE = ROOT / "docs" / "correctness.md"
MEMORY_N, MEMORY_D = 512, 128
# These hold M^3 or M^2 D numbers: a smaller N, which the page tells.
MEMORY_N_OF = {
    "pytorch-metric-learning": 128,
    **dict.fromkeys(("info-nce-pytorch", "Spijkervet, formula", "simclr (Spijkervet)"), 256),
}


def measure(
    made: Implementation,
    device: torch.device,
    dtypes: tuple[str, ...] = DTYPES,
    temperatures: tuple[float, ...] = TEMPERATURES,
    thorough: bool = True,
) -> Row:
    """One row of the page; `thorough` also measures memory and graph breaks."""
    if reason := made.absent(device):
        return Row(made.loss, made.name, reason)
    row = Row(made.loss, made.name)
    for case in cases(LOSSES[made.loss], dtypes, temperatures):
        row.outcomes[case] = outcome(made.loss, case, made.build, device)
    if thorough:
        n = MEMORY_N_OF.get(made.name, MEMORY_N) if made.loss == "ntxent" else MEMORY_N
        row.memory = (n, peak_mib(made.loss, made.name, n, MEMORY_D, device.type, modules(device)))
        try:
            views = (x.to(device) for x in inputs(LOSSES[made.loss], CASE))
            row.breaks = graph_breaks(made.build(CASE.temperature), tuple(views))
        except Exception as error:
            row.breaks = f"fails: {in_a_line(error).split(':')[0]}"
    return row


def about(device: torch.device) -> str:
    """Machine, versions, commit and date in a line or two."""
    machine = environment(device.type, torch.get_num_threads(), "correctness")
    commit, modified = commit_of_checkout()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    where = machine.get("gpu") or f"CPU {machine['processor']}"
    built = f"commit {commit or 'unknown'}{' + changes' if modified else ''}"
    return f"Of {datetime.date.today():%d %B %Y}, {built}. {where}. {versions}."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, nargs="?", const=PAGE, help="write the page (docs/correctness.md)")
    parser.add_argument("--losses", nargs="+", choices=[*LOSSES], default=[*LOSSES], help="a part of the losses")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    device, began = torch.device(options.device), time.monotonic()
    torch.set_num_threads(1)  # the rows are few; memory is measured with the threads of the other benchmarks
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # graph breaks are counted, not told of one by one
    rows = []
    for name in options.losses:
        for made in of_loss(name):
            rows.append(measure(made, device))
            taken = f"{time.monotonic() - began:.0f} s"
            sys.stderr.write(f"{taken}: {name}, {made.name.replace('**', '')}: {rows[-1].absent or 'measured'}\n")
    found = scales(tuple(options.losses), device)
    for row in rows:
        row.scale = found.get((row.loss, row.name))
    text = page(rows, about(device), MEMORY_N, MEMORY_D)
    if options.write:
        options.write.write_text(text)
        sys.stdout.write(f"{options.write}\n")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
