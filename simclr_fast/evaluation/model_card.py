"""The model card of an export: what the files are, how to load them, how they were trained, what was measured."""

from pathlib import Path
from typing import Any

import torch

from simclr_fast.backbones.registry import family_of, spec_of
from simclr_fast.config import as_dict
from simclr_fast.errors import in_utf8
from simclr_fast.evaluation.card_metadata import comparison_of, data_name, front_matter, results_of
from simclr_fast.evaluation.comparison import comparison_table
from simclr_fast.evaluation.run import WEIGHTS_FILE, Run
from simclr_fast.evaluation.tables import ResultTable
from simclr_fast.run_files import in_one_move

# The files of an export, beside WEIGHTS_FILE.
STATE_DICT_FILE = "backbone.pth"
PROGRAM_FILE = "backbone.pt2"
ONNX_FILE = "backbone.onnx"
CARD_FILE = "README.md"
# Options of where and how images are read, which leave the weights as they are.
READING = ("data", "download", "decode_device", "workers", "resident")


def write_model_card(run: Run, folder: Path, license_name: str | None = None) -> Path:
    """Write README.md, a card as Hugging Face's hub reads it; returns its path.

    license_name: of the weights, as the hub names it. Raises ConfigError where it is no such name.
    """
    config = run.config
    described = describe(run)
    channels, size = described["channels"], described["image_size"]
    sections = [
        front_matter(run, license_name),
        f"# {described['model']}, pretrained by SimCLR on the images of {data_name(run)}",
        f"A backbone without its projection head: images [B, {channels}, {size}, {size}], values in [0, 1] normalised "
        f"by mean {described['mean']} and standard deviation {described['std']}, to one feature vector each. It was "
        f"trained without labels (Chen et al. 2020, arXiv:2002.05709){_beginning(config.model.pretrained)}.",
        "## Use",
        f"```python\n{loading_code(run)}```",
        f"- `{STATE_DICT_FILE}`, `{WEIGHTS_FILE}`: the weights. The second also loads with "
        "`simclr_fast.load_backbone`.\n"
        f"- `{PROGRAM_FILE}`: a graph for any batch size that needs only torch: "
        f'`torch.export.load("{PROGRAM_FILE}").module()(images)`.'
        + f"\n- `{ONNX_FILE}`: input `images`, output `features`."
        * (folder / ONNX_FILE).exists(),
        "## Training",
        _options_table(run),
        "## Measured",
        _metrics(run),
        "## Limits",
        "The features carry what the training images and views carry, their biases included. They were evaluated only "
        "as the tables above say; evaluate them on your own images before you rely on them.",
    ]
    path = folder / CARD_FILE
    with in_one_move(path) as temporary:
        temporary.write_text(in_utf8("\n\n".join(sections)) + "\n", encoding="utf-8")
    return path


def describe(run: Run) -> dict[str, Any]:
    """What somebody who has only the weights must know to use them."""
    model, augment = run.config.model, run.config.augment
    return {
        "model": model.model,
        "model_kwargs": list(model.model_kwargs),
        "stem": model.stem,
        "norm": model.norm,
        "channels": run.channels,
        "image_size": augment.size,
        "mean": list(augment.mean),
        "std": list(augment.std),
        "step": run.step,
    }


def loading_code(run: Run) -> str:
    """Python that loads the exported weights without this package, as far as others have the architecture."""
    model = run.config.model
    spec = spec_of(model, run.channels, run.config.augment.size)
    lines = family_of(model.model).loading_code(spec)
    norms = [m for m in run.encoder().modules() if isinstance(m, torch.nn.GroupNorm)] if model.norm == "group" else []
    if lines is None or any(hasattr(norm, "act") for norm in norms):
        return f"import torch\n\nbackbone = torch.export.load({PROGRAM_FILE!r}).module()\n"
    lines = ["import torch", *lines]
    if norms:
        lines += [
            f"groups = { ({norm.num_channels: norm.num_groups for norm in norms}) }",
            "for name, norm in list(backbone.named_modules()):",
            "    if isinstance(norm, torch.nn.BatchNorm2d):",
            "        group_norm = torch.nn.GroupNorm(groups[norm.num_features], norm.num_features)",
            "        backbone.set_submodule(name, group_norm)",
        ]
    lines += [f"backbone.load_state_dict(torch.load({STATE_DICT_FILE!r}, weights_only=True))", "backbone.eval()"]
    return "\n".join(lines) + "\n"


def _options_table(run: Run) -> str:
    options = as_dict(run.config)
    rows = [("steps done", run.step)]
    for group in ("data", "augment", "model", "optimization"):
        rows += [(name, value) for name, value in options[group].items() if name not in READING]
    rows = [(name, value) for name, value in rows if value not in (None, "", [], ())]
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"Recipe `{run.config.recipe}`.\n", "| option | value |", "|---|---|", *lines])


def _beginning(pretrained: str | None) -> str:
    """Where the weights came from that training began with: those of others have mostly seen labels."""
    return (
        "" if pretrained is None else f", beginning with the weights {Path(pretrained).name}, whatever these had seen"
    )


def _metrics(run: Run) -> str:
    """The tables of everything that was measured of this checkpoint, but for those by class."""
    comparison = comparison_of(run)
    tables = [] if comparison is None else [comparison_table(comparison)]
    tables += [ResultTable(**content["tables"][0]) for content in results_of(run)]
    return "\n\n".join(map(_table, tables)) or "Not evaluated yet."


def _table(table: ResultTable) -> str:
    rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    return "\n".join([f"{table.title}.\n", *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(value: Any) -> str:
    text = " ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else _plain(value)
    return " ".join(text.replace("|", "\\|").split())


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
