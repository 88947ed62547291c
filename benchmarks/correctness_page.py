"""Writes docs/correctness.md of what benchmarks.correctness measured."""

from dataclasses import dataclass, field

from benchmarks.correctness_cases import BANK, DTYPES, LOSSES, SHAPES, TEMPERATURES, Case, D, N
from benchmarks.correctness_measures import WRONG, Outcome
from benchmarks.correctness_ranks import TOLERANCE, WORLD, Scale
from benchmarks.report_tables import table


@dataclass
class Row:
    """What was found of one implementation of a loss; `absent` says why nothing was."""

    loss: str
    name: str
    absent: str = ""
    outcomes: dict[Case, Outcome] = field(default_factory=dict)
    scale: Scale | None = None
    memory: tuple[int, float] | None = None  # N, MiB
    breaks: int | str | None = None


SHOWN = ("float32", "float16", "bfloat16")  # in a column each; of float64, what fails is told
SHORT = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def worst(row: Row, dtype: str) -> str:
    """Largest errors of loss and gradient over the cases of a dtype that do not fail."""
    good = [found for case, found in row.outcomes.items() if case.dtype == dtype and not found.fault]
    if not good:
        return "fails"
    return f"{max(o.loss_error for o in good):.0e} / {max(o.gradient_error for o in good):.0e}"


def _range(temperatures: set[float]) -> str:
    """`` where it fails at all temperatures, else ` t <= .05` or the temperatures."""
    tested = sorted(TEMPERATURES)
    if temperatures == set(tested):
        return ""
    lowest = tested[: len(temperatures)]
    shown = lambda t: f"{t:g}".lstrip("0")
    if temperatures == set(lowest):
        return f" t = {shown(lowest[0])}" if len(lowest) == 1 else f" t <= {shown(lowest[-1])}"
    return " t = " + ", ".join(map(shown, sorted(temperatures, reverse=True)))


def _inputs(found: dict[str, set[float]], kinds: tuple[str, ...]) -> str:
    """Which kinds of input fail at which temperatures, the kinds with equal temperatures together."""
    by_range: dict[str, list[str]] = {}
    for kind in kinds:
        if kind in found:
            by_range.setdefault(_range(found[kind]), []).append(kind)
    parts = []
    for temperatures, names in by_range.items():
        parts.append(("every input" if len(names) == len(kinds) else ", ".join(names)) + temperatures)
    return "; ".join(parts)


def fails(row: Row) -> str:
    """Every failure: by dtype, how, on what rows, at which temperatures. Dtypes that fail alike are named together."""
    texts: dict[str, list[str]] = {}
    for dtype in DTYPES:
        found: dict[str, dict[str, set[float]]] = {}
        for case, outcome in row.outcomes.items():
            if case.dtype == dtype and outcome.fault:
                how = outcome.fault.split(":")[0]
                found.setdefault(how, {}).setdefault(case.kind, set()).add(case.temperature)
        kinds = LOSSES[row.loss].kinds
        text = "; ".join(f"{how}: {_inputs(of, kinds)}" for how, of in sorted(found.items()))
        if text:
            texts.setdefault(text, []).append(SHORT[dtype])
    return "<br>".join(f"**{', '.join(dtypes)}** {text}" for text, dtypes in texts.items()) or "nowhere"


def ddp(scale: Scale | None) -> str:
    """The gradient's scale; what is wrong with it, and with the value."""
    if scale is None:
        return "own rows only"
    if scale.reason:
        return scale.reason.split(":")[0]
    if not scale.direction <= TOLERANCE:
        return f"**another gradient** ({scale.gradient:.2g} of the true one, {scale.direction:.2g} beside it)"
    text = f"{scale.gradient:.3g}" if abs(scale.gradient - 1) <= TOLERANCE else f"**{scale.gradient:.3g}**"
    return text + (f", value x {scale.value:.2g}" if abs(scale.value - 1) > 5e-2 else "")


def _cells(row: Row, memory_n: int) -> list[str]:
    memory = ""
    if row.memory:
        n, mib = row.memory
        memory = f"{mib:.1f}" if mib < 10 else f"{mib:.0f}"
        memory += "" if n == memory_n else f" (N = {n})"
    breaks = "" if row.breaks is None else str(row.breaks)
    return [row.name, *(worst(row, dtype) for dtype in SHOWN), ddp(row.scale), memory, breaks, fails(row)]


def loss_section(name: str, rows: list[Row], memory_n: int) -> str:
    """Title, formula, and the table of one loss."""
    loss = LOSSES[name]
    header = ["", *(SHORT[dtype] for dtype in SHOWN), "DDP", "MiB", "breaks", "fails"]
    shown = table(header, [_cells(row, memory_n) for row in rows if not row.absent]).split("\n")
    shown[1] = "|---" * len(header) + "|"
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.absent:
            by_reason.setdefault(row.absent, []).append(row.name.replace("**", ""))
    left_out = "\n".join(f"\nNot measured, {reason}: {', '.join(names)}." for reason, names in by_reason.items())
    return f"## {loss.title}\n\n{loss.formula}.\n\n" + "\n".join(shown) + (f"\n{left_out}" if left_out else "")


def _head(about: str, memory_n: int, memory_d: int) -> str:
    """What is measured and what the columns mean."""
    temperatures = ", ".join(f"{t:g}" for t in TEMPERATURES)
    columns = ", ".join(SHORT[dtype] for dtype in SHOWN)
    bounds = f"{WRONG['float64']:g} in float64, {WRONG['float32']:g} in float32, {WRONG['float16']:g} in half types"
    more = " and ".join(LOSSES["sup_con"].more_kinds)
    lines = [
        "# Which contrastive losses are right, and where they are not",
        "",
        "Every implementation that can be imported, called as its users call it, against the definition in float64.",
        "`python -m benchmarks.correctness --write` writes this page, and so does `make bench`.",
        "",
        about,
        "",
        f"- **{columns}**: the largest relative error of loss / gradient over the inputs that are not under **fails**.",
        f"  Inputs: N = {N}, D = {D}, t = {temperatures}; rows that are random, aligned (one view is the other and",
        "  0.3 of noise), opposed (one view is minus the other), equal, zero (three rows), huge (a row of 1e30;",
        f"  float16: 60,000), one column (D = {SHAPES['one column'][1]}), one sample (N = {SHAPES['one sample'][0]});",
        f"  for SupCon also {more}. The truth is that of the inputs as rounded to their type; a half",
        "  gradient is compared with the true one rounded to its type, both scaled as a GradScaler would; what a type",
        "  cannot hold is no error. A row's gradient counts times the row's length; where the true one is 0 by",
        "  symmetry, errors are relative to 2 / (t M |z|).",
        f"- **fails**: NaN, inf, an exception, or *wrong*: a relative error above {bounds}.",
        "  Where pairs are well aligned and t is low, a log-sum-exp minus its own largest term loses the loss and its",
        "  gradient to rounding ([why](ntxent.md)). The gradient of a zero row is 1/eps times a direction, of an eps",
        "  that each package chooses: it must not be NaN, and does not count otherwise.",
        f"- **DDP**: {WORLD} processes with half of the batch each; the mean of their gradients, which",
        "  DistributedDataParallel takes, over the gradient of the whole batch's loss: 1 is right,",
        f"  {1 / WORLD:g} is 1/W, {WORLD} is W. *own rows only*: no form that compares with other processes' rows.",
        f"- **MiB**: peak memory of forward + backward beyond the inputs, in a fresh process, float32, N = {memory_n},",
        f"  D = {memory_d}, a bank of N rows, 1,000 classes. **breaks**: graph breaks under `torch.compile`.",
        "",
        "In the formulas s_ij is the cosine of rows i and j over t; the loss is the mean of the L_i.",
    ]
    return "\n".join(lines)


NOTES = f"""## Notes

- *formula*: written here from the definition: solo-learn's SimCLR loss, and the loss of Spijkervet's repository. The
  released `simclr` 1.0.2 gathers both views of a rank together and takes wrong rows for positives; the repository was
  mended, without a release.
- info-nce-pytorch has no NT-Xent: it is given each row's negatives, paired. open_clip's features come normalised from
  the model: it is given *unit rows*, made in float64 and rounded to the type, and so is ours where it says so; else
  ours takes the rows as they come (`normalize=True`). What the rounding of the rows costs counts here, which in half
  types is most of it. open_clip's options matter to several processes only.
- lightly's bank (here of {BANK} rows) is float32 and is not converted with the views.
- pytorch-metric-learning's SupConLoss is 0 where no row has a negative."""


def page(rows: list[Row], about: str, memory_n: int, memory_d: int) -> str:
    """The whole page."""
    by_loss = {name: [row for row in rows if row.loss == name] for name in LOSSES}
    sections = [loss_section(name, of, memory_n) for name, of in by_loss.items() if of]
    return "\n\n".join([_head(about, memory_n, memory_d), *sections, NOTES]) + "\n"
