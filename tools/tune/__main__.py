"""python -m tools.tune RECIPE: tries the candidates of a recipe's study, and writes docs/tables/recipe_RECIPE.md.

Each training is a line of build/tune/RECIPE.jsonl, and what is in that file is not trained again. One thread computes,
so that two studies can run on two cores, and sums come out the same. No test image is looked at.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from simclr_fast.evaluation.features import Preprocess
from simclr_fast.process import exit_status
from simclr_fast.recipes import RECIPES
from simclr_fast.training.state import data_identity
from tools.tables import write_table
from tools.tune import demo, small_images
from tools.tune.page import page, table
from tools.tune.study import Changes, Results, chosen, finals, kept, search
from tools.tune.trial import changed, measure, raw_pixels, training_images

ROOT = Path(__file__).resolve().parent.parent.parent
STUDIES = {"demo": demo.STUDY, "small-images": small_images.STUDY}


def main(arguments: list[str] | None = None) -> int:
    """Runs the study; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tune", description=(__doc__ or "").strip())
    parser.add_argument("recipe", choices=sorted(STUDIES))
    parser.add_argument("--dataset", help="kind of data set, as `simclr-fast pretrain` has it (default: the recipe's)")
    parser.add_argument("--data", type=Path, help="folder that holds it (default: the recipe's)")
    parser.add_argument("--results", type=Path, help="file of the trainings (default: build/tune/RECIPE.jsonl)")
    parser.add_argument("--table", type=Path, help="table to write (default: docs/tables/recipe_RECIPE.json)")
    options = parser.parse_args(arguments)
    study, name = STUDIES[options.recipe], options.recipe.replace("-", "_")
    torch.set_num_threads(1)
    config = RECIPES[study.recipe]
    named = {"dataset": options.dataset, "data": options.data}
    data = dataclasses.replace(config.data, **{option: value for option, value in named.items() if value is not None})
    parts = training_images(data, study.held_out, study.images)

    def train_and_judge(changes: Changes, steps: int, seed: int) -> dict:
        candidate, extras = changed(config, changes)
        candidate = dataclasses.replace(candidate, run=dataclasses.replace(candidate.run, seed=seed))
        return measure(candidate, extras, parts, steps)

    file = options.results or ROOT / f"build/tune/{name}.jsonl"
    results = Results(file, train_and_judge, data_identity(parts.train)["sha256"])
    axes = list(search(study, results))
    last = finals(study, results)
    options_kept = chosen(study.start, kept(row for _, rows in axes for row in rows), kept(last))
    pixels = raw_pixels(parts, Preprocess.of(changed(config, options_kept)[0].augment))
    sizes = {"train": len(parts.train), "held_out": len(parts.held_out)}
    path = options.table or ROOT / f"docs/tables/recipe_{name}.json"
    found = table(study, axes, last, pixels, sizes)
    write_table(path, found, page(found))
    print(f"Written: {path}, {path.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status("tune", main))
