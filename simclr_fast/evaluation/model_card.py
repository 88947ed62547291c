"""The model card of an export: what the files are, how to load them, how they were trained, what was measured."""

from pathlib import Path
from typing import Any

import torch

from simclr_fast.backbones.registry import family_of, spec_of
from simclr_fast.config import as_dict
from simclr_fast.evaluation.comparison import comparison_table
from simclr_fast.evaluation.run import WEIGHTS_FILE, Run
from simclr_fast.run_files import read_comparison

# The files of an export, beside WEIGHTS_FILE.
STATE_DICT_FILE = "backbone.pth"
PROGRAM_FILE = "backbone.pt2"
ONNX_FILE = "backbone.onnx"
CARD_FILE = "README.md"


def write_model_card(run: Run, folder: Path) -> Path:
    """Write README.md with the front matter that model hubs read; returns its path."""
    config = run.config
    described = describe(run)
    channels, size = described["channels"], described["image_size"]
    sections = [
        "---\nlibrary_name: simclr_fast\ntags: [simclr, self-supervised, image-feature-extraction]\n---",
        f"# {described['model']}, pretrained by SimCLR on {config.data.dataset}",
        f"A backbone without its projection head: images [B, {channels}, {size}, {size}], values in [0, 1] normalised "
        f"by mean {described['mean']} and standard deviation {described['std']}, to one feature vector each. It was "
        "trained without labels (Chen et al. 2020, arXiv:2002.05709).",
        "## Use",
        f"```python\n{loading_code(run)}```",
        f"- `{STATE_DICT_FILE}`, `{WEIGHTS_FILE}`: the weights. The second also loads with "
        "`simclr_fast.load_backbone`.\n"
        f"- `{PROGRAM_FILE}`: a graph for any batch size that needs only torch: "
        f'`torch.export.load("{PROGRAM_FILE}").module()(images)`.\n'
        f"- `{ONNX_FILE}`, where it was asked for: input `images`, output `features`.",
        "## Training",
        _options_table(run),
        "## Measured",
        _metrics(run),
        "## Limits",
        "The features carry what the training images and views carry, their biases included. They were evaluated only "
        "as the table above says; evaluate them on your own images before you rely on them.",
    ]
    path = folder / CARD_FILE
    path.write_text("\n\n".join(sections) + "\n")
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
        rows += [(name, value) for name, value in options[group].items() if name != "data" and value is not None]
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"Recipe `{run.config.recipe}`.\n", "| option | value |", "|---|---|", *lines])


def _metrics(run: Run) -> str:
    results = read_comparison(run.folder)
    if results is None:
        return "Not evaluated yet."
    table = comparison_table(results)
    rows = [table.columns, ["---", *["---:"] * (len(table.columns) - 1)], *table.rows]
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join([f"{table.title}.\n", *lines])


def _cell(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.replace("|", "\\|").split())
