"""One trunk for all modalities beside a trunk for each: k-NN and linear probe of frozen features, as one table.

    python benchmarks/joint_table.py [config=joint/demo] [seeds=2] [threads=1] [out=runs/joint_table] [pages=docs]

Each part has the same updates in every row, of the same batches. "Alone" is the part's own run. Of a frozen trunk the
front end and the decoder alone learn: below a random trunk, and below the one that another part's own run left; if
that is no better, nothing is shared. Rows are written to docs/table_joint.json, and those that are there stay, so that
the command goes on where it was stopped. Writes docs/results.md between its marks.
"""

import itertools
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from table import ROOT, file_name, keep, put, record, score

from d2v import plugins
from d2v.config.joint import JointConfig, load_joint
from d2v.config.schema import Config
from d2v.models.encoder import D2vModel
from d2v.scripts import evaluate, pretrain
from d2v.training import pretraining

EVALUATE = {"text": ["evaluate.text.max_train=50", "evaluate.text.k=[5]"]}  # as in text/demo_topics
RECIPE = "together, the recipe's weights"  # in all other rows each part has the weight 1, or what was measured
MIXES: dict[str, list[str]] = {
    "together": [],
    "together, weights auto": ["objective.weights=auto"],
    RECIPE: [],
    "together, own norms": ["model.trunk.own_norms=true"],
    "turns": ["objective.mix=turns"],
    "turns, own norms": ["objective.mix=turns", "model.trunk.own_norms=true"],
}
MARKS = "<!-- joint runs: benchmarks/joint_table.py -->", "<!-- end of joint runs -->"


def main(arguments: list[str]) -> None:
    """`arguments`: key=value."""
    given = {"config": "joint/demo", "seeds": "2", "threads": "1", "out": "runs/joint_table", "pages": ROOT / "docs"}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in given:
            raise SystemExit(f"no option {argument}\n{__doc__}")
        given[name] = value
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(int(given["threads"]))
    for seed in range(int(given["seeds"])):
        Rows(str(given["config"]), seed, Path(given["out"]) / str(seed), Path(given["pages"])).make()


class Rows:
    """All rows of one seed."""

    def __init__(self, config: str, seed: int, out: Path, pages: Path):
        self.config, self.seed, self.out, self.pages = config, seed, out, pages
        self.parts = list(self.joint(self.out).data)

    def make(self) -> None:
        """Those that are not there."""
        for part in self.parts:
            self.row("alone", part, lambda run, part=part: pretraining.pretrain(self.alone(part, run)))
        for name, settings in MIXES.items():
            run = self.out / file_name(name)
            given = name == RECIPE or "objective.weights=auto" in settings
            weights = [] if given else [f"objective.weights.{part}=1" for part in self.parts]
            for part in self.parts:
                self.row(name, part, lambda _, run=run, more=[*weights, *settings]: self.train(run, more), run)
        for part, other in zip(self.parts, self.parts[1:] + self.parts[:1], strict=True):
            self.row("random trunk, frozen", part, lambda run, part=part: self.frozen(part, "", run))
            self.row("another's trunk, frozen", part, lambda run, part=part, other=other: self.frozen(part, other, run))

    def joint(self, run: Path, *more: str) -> JointConfig:
        """The settings of a joint run."""
        return load_joint(self.config, [f"train.seed={self.seed}", f"run.dir={run}", *more])

    def alone(self, part: str, run: Path) -> Config:
        """The settings of a part's own run, with the teacher's rates of the joint one."""
        joint = self.joint(run)
        config = joint.of(part)
        for name in ("ema_decay", "ema_end_decay", "ema_anneal_steps"):
            if hasattr(config.objective, name):
                setattr(config.objective, name, getattr(joint.objective, name))
        return config

    def train(self, run: Path, settings: list[str]) -> None:
        """A joint run in which each part has as many steps as alone."""
        if (run / "export" / "config.json").is_file():  # for a row of another part
            return
        base, longer = self.joint(run), []
        if "objective.mix=turns" in settings:
            times = len(self.parts)
            longer = [f"train.{name}={times * getattr(base.train, name)}" for name in ("steps", "warmup_steps")]
            longer.append(f"objective.ema_anneal_steps={times * base.objective.ema_anneal_steps}")
        pretrain.main([self.config, f"train.seed={self.seed}", f"run.dir={run}", *settings, *longer])

    def frozen(self, part: str, other: str, run: Path) -> None:
        """A part's own run below a trunk that stays as it is: that of `other`'s own run, or "": a random one."""
        config = self.alone(part, run)
        modality = plugins.load("d2v.modalities", part)
        loop, _ = pretraining.assemble(config, modality, Accelerator(cpu=True))
        trunks = [encoder.trunk for encoder in loop.objective.modules() if isinstance(encoder, D2vModel)]
        if other:
            source = D2vModel.from_pretrained(self.folder("alone", other) / "export")
            for trunk in trunks:
                trunk.load_state_dict(source.trunk.state_dict())
        for trunk in trunks:
            trunk.requires_grad_(False)
        loop()
        teacher = loop.objective.teacher if len(loop.objective.teacher) else loop.objective.student
        teacher["encoder"].save_pretrained(run / "export")
        modality.save_preprocessor(run / "export", run, config.data, config.frontend)

    def folder(self, name: str, part: str) -> Path:
        """Of a run of one part."""
        return self.out / f"{file_name(name)}_{part}"

    def row(self, name: str, part: str, make: Any, run: Path | None = None) -> None:
        """Trains what is missing, and scores it for one part."""
        key = f"{name}/{part}/{self.seed}"
        if key in record("joint", self.pages):
            return
        run = run or self.folder(name, part)
        make(run)
        first = not any(other.split("/")[1] == part for other in record("joint", self.pages))
        asked = [*EVALUATE.get(part, []), f"evaluate.{part}.raw={str(first).lower()}"]
        asked.append(f"evaluate.{part}.random_seeds={3 if first else 0}")
        found = evaluate.main(
            [self.config, f"model={run / 'export'}", f"part={part}", f"run.dir={run}", "run.overwrite=true", *asked]
        )
        rows = {row["model"]: row["scores"] for row in (found if "rows" in found else found[part])["rows"]}
        rows["export"] = rows.pop(str(run / "export"))
        print(f"{key}: {rows['export']}", flush=True)
        keep("joint", key, {"rows": rows}, self.pages)
        publish(self.pages, self.parts)


def publish(pages: Path, parts: list[str]) -> None:
    """The table into results.md."""
    cells: dict[str, dict[str, list[dict]]] = {}
    for key, row in record("joint", pages).items():
        name, part, _ = key.split("/")
        for model, scores in row["rows"].items():
            shown = name if model == "export" else "random init" if model.startswith("random") else "raw input"
            cells.setdefault(shown, {}).setdefault(part, []).append(scores)
    heads = [f"{part}: {kind}" for part, kind in itertools.product(parts, ("k-NN", "probe"))]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    names = ["raw input", "random init", *(name for name in cells if name not in ("raw input", "random init"))]
    for name in names:
        values = []
        for part, kind in itertools.product(parts, ("k-NN", "linear")):
            scores = [score(one, kind) for one in cells.get(name, {}).get(part, [])]
            values.append(
                "; ".join(f"{s:.1f}" for s in scores) + (f" ({statistics.mean(scores):.1f})" if len(scores) > 1 else "")
            )
        lines.append(f"| {name} | {' | '.join(values)} |")
    put(pages / "results.md", lines, *MARKS, "One trunk for three modalities")


if __name__ == "__main__":
    main(sys.argv[1:])
