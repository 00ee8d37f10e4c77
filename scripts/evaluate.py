"""Scores a pretrained encoder by k-NN and linear probe, beside random inits and the raw input, and makes reports.

d2v evaluate image/data2vec_tiny model=runs/photos/export data.path=photos/ [...]

`model` is a run's folder, its export/ or one of its checkpoints, a folder of transformers or a name on the Hub, and
brings its size and how it was fed; several are separated by commas. The table is printed and written to evaluation/
beside the first model, or to evaluation/ in run.dir where that is given as an argument. Reports
(evaluate.reports=[knn_sweep,few_labels,...]: the files of d2v/evaluation/reports) leave their pictures in a folder of
the same name.
"""

from contextlib import nullcontext
from typing import Any

from d2v.config.cli import run_cli, take_arguments
from d2v.config.joint import load_parts
from d2v.config.written import in_home
from d2v.evaluation.pair_run import evaluate_pairs
from d2v.evaluation.run import evaluate
from d2v.objectives.common.parts import BETWEEN, names_of


def main(argv: list[str]) -> dict[str, Any]:
    """`argv`: CONFIG model=PATH[,PATH...] [key=value ...]; what the file holds. ValueError: see each step."""
    given, rest = take_arguments(argv, "model", "part")
    models = [in_home(path) for path in given["model"].strip("[]").split(",") if path]
    if not rest or "=" in rest[0] or not models:
        raise ValueError("usage: d2v evaluate CONFIG model=PATH[,PATH...] [key=value ...]")
    in_run = any(argument.startswith("run.dir=") for argument in rest)
    found = {}
    for part, config in load_parts(rest[0], rest[1:], given["part"]).items():
        with names_of(part) if part else nullcontext():
            if BETWEEN in part:
                found[part] = evaluate_pairs(config, models[0], in_run=in_run)
            else:
                found[part] = evaluate(config, models, config_path=rest[0], in_run=in_run)
    return found.get("", found)


if __name__ == "__main__":
    run_cli(main)
