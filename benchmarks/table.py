"""All methods on one trunk in equal minutes: k-NN and linear probe of frozen features, with controls, as one table.

    python benchmarks/table.py [image=PATH] [speech=PATH] [text=PATH] [minutes=3] [seeds=2] [threads=1] [out=runs/table]
        [methods=mae,dino] [pages=docs]

PATH: CIFAR-10 (10,000 images train), FSDD's spoken digits (scored among other speakers), BANKING77 (its intents).
A method is a recipe <modality>/<method>_tiny, with the trunk and the front end of all others. Its steps are those that
`minutes` hold, by the processor seconds of some steps before, over the threads: what else the machine does weighs
little. Warm-up and annealing keep their shares. One row after the other; each is written to docs/table_<modality>.json,
and those that are there stay, so that the command goes on where it was stopped. Writes docs/results.md between its
marks, and a picture for each modality.
"""

import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from config_steps import Steps
from matplotlib.figure import Figure

from d2v import plugins
from d2v.config.loading import load_config, load_values
from d2v.files import written
from d2v.scripts import evaluate, pretrain

ROOT = Path(__file__).resolve().parent.parent
DATA = {"image": "data/cifar10_small", "speech": "data/fsdd", "text": "data/banking77"}
TRUNK = {"depth": 4, "dim": 128, "num_heads": 4, "mlp_dim": 512, "input_norm": False}
FRONTENDS: dict[str, dict[str, Any]] = {  # what every method of a modality reads with
    "image": {
        "image_size": 32,
        "patch_size": 4,
        "backbone": "",
        "small_stem": False,
        "relative_bias": False,
        "class_token": False,
        "positions": "sincos",
        "init": "normal",
        "init_std": 0.5,
    },
    "speech": {},
    "text": {},
}
NORM = "trunk.input_norm"  # which this trunk has not
CONTROL = "data2vec2, teacher never updated"
TEACHING = ("data2vec2", CONTROL, "best_rq", "mae", "mlm")  # beside one another: what the teacher adds
TIMED = 12  # steps, after the first few
MARKS = "<!-- methods of {}: benchmarks/table.py -->", "<!-- end of {} -->"


class Row(NamedTuple):
    """One line of the table: scores in percent, by seed."""

    name: str
    knn: list[float]
    probe: list[float]
    steps: int


def main(arguments: list[str]) -> None:
    """`argv`: key=value."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    unknown = set(given) - {*DATA, "minutes", "seeds", "threads", "out", "methods", "pages"}
    if unknown or not given.keys() & DATA.keys():
        raise SystemExit(f"no option {', '.join(sorted(unknown))}\n{__doc__}" if unknown else __doc__)
    out, pages = Path(given.get("out", "runs/table")), Path(given.get("pages", ROOT / "docs"))
    threads = int(given.get("threads", 1))
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for seed in range(int(given.get("seeds", 2))):  # all methods have one before any has two
        for modality in DATA:
            if modality not in given:
                continue
            asked = given["methods"].split(",") if "methods" in given else methods(modality)
            for method in asked:
                done = record(modality, pages)
                if key_of(method, seed) in done:
                    continue
                minutes = float(given.get("minutes", 3))
                found = row(modality, method, seed, given[modality], minutes, threads, out, first=not done)
                keep(modality, key_of(method, seed), found, pages)
                publish(modality, pages)


def methods(modality: str) -> list[str]:
    """Those that have a tiny recipe for the modality, and the control."""
    names = [name for name in plugins.available("d2v.objectives") if recipe(modality, name).is_file()]
    return [*names, CONTROL]


def recipe(modality: str, method: str) -> Path:
    """The file of a method's tiny recipe."""
    return ROOT / "configs" / modality / f"{method.split(',')[0]}_tiny.yaml"


def record(modality: str, pages: Path) -> dict[str, Any]:
    """The rows that are done, by method and seed."""
    path = pages / f"table_{modality}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def keep(modality: str, key: str, row: dict | None, pages: Path) -> None:
    """Adds a row to the record; None: it failed, and is tried again next time."""
    if row is not None:
        rows = {**record(modality, pages), key: row}
        with written(pages / f"table_{modality}.json") as draft:
            draft.write_text(json.dumps(rows, indent=1) + "\n")


def key_of(method: str, seed: int) -> str:
    """A row's name in the record and its run's folder."""
    return f"{file_name(method)}_{seed}"


def file_name(name: str) -> str:
    """A row's name as that of a folder."""
    return name.replace(", ", "_").replace(" ", "_")


def row(
    modality: str, method: str, seed: int, data: str, minutes: float, threads: int, out: Path, *, first: bool
) -> dict | None:
    """Trains and scores one method, the `first` one with the controls; None: it failed, and said why.

    In a process of its own, which begins with the libraries: their import takes longer than a short evaluation.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["config_steps"])
    with futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            found = pool.submit(scored, modality, method, seed, data, minutes, threads, out, first).result()
        except Exception as error:  # the other rows go on, whatever it was
            print(f"{modality} {method} seed {seed} failed: {error}", flush=True)
            return None
    print(f"{modality} {method} seed {seed}: {found['rows']['export']}", flush=True)
    return found


def scored(
    modality: str, method: str, seed: int, data: str, minutes: float, threads: int, out: Path, first: bool
) -> dict[str, Any]:
    """The row. Health is measured at both ends alone, and no file is checked beforehand: the minutes are for steps."""
    torch.set_num_threads(threads)
    run = out / modality / key_of(method, seed)
    run.parent.mkdir(parents=True, exist_ok=True)
    trunk = out / modality / "trunk.yaml"
    trunk.write_text(yaml.safe_dump({"model": {"frontends": {modality: FRONTENDS[modality]}, "trunk": TRUNK}}))
    settings = [DATA[modality], str(trunk), f"data.path={data}", f"train.seed={seed}"]
    settings += ["train.update_teacher=false"] if method == CONTROL else []
    settings += [] if modality == "text" else ["data.check_files=false"]
    config, began = str(recipe(modality, method)), time.process_time()
    objective = load_values(config)["objective"]
    if "norm_groups" in objective:
        settings.append("objective.norm_groups=1")  # the trunk has no batch norm to be divided
    if NORM in objective.get("shared", ()):
        rest = [name for name in objective["shared"] if name != NORM]
        settings.append(f"objective.shared=[{','.join(rest)}]")
    if objective.get("tile_size", 8) % FRONTENDS["image"]["patch_size"]:
        settings.append("objective.tile_size=8")  # tiles are whole patches
    seconds, scaled = timed(config, settings, minutes, threads)
    common = [config, *settings, f"run.dir={run}", "run.overwrite=true"]
    at_ends = f"run.health_every={scaled[0].partition('=')[2]}"
    pretrain.main([*common, *scaled, at_ends])
    evaluate.main([*common, f"model={run / 'export'}", *controls(first), "evaluate.reports=[]"])
    (table,) = (run / "evaluation").glob("*.json")
    rows = {found["model"]: found["scores"] for found in json.loads(table.read_text())["rows"]}
    rows["export"] = rows.pop(str(run / "export"))
    return {"step": seconds, "settings": scaled, "minutes": (time.process_time() - began) / 60, "rows": rows}


def controls(first: bool) -> list[str]:
    """The raw input and random inits are scored with the first row."""
    return [f"evaluate.raw={str(first).lower()}", f"evaluate.random_seeds={3 if first else 0}"]


def timed(config: str, settings: list[str], minutes: float, threads: int) -> tuple[float, list[str]]:
    """Processor seconds of a step and thread, and the settings of a run of so many minutes."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(load_config(config, [*settings, f"run.dir={folder}/run"]))
        for _ in range(3 + TIMED):
            steps()
    seconds = statistics.median(steps.cpu[3:]) / threads
    train, objective = steps.config.train, vars(steps.config.objective)
    count = max(1, round(60 * minutes / seconds))
    share = count / train.steps
    scaled = [f"train.steps={count}", f"train.warmup_steps={min(count, round(share * train.warmup_steps))}"]
    if train.update_teacher and objective.get("ema_anneal_steps"):
        scaled.append(f"objective.ema_anneal_steps={max(1, round(share * objective['ema_anneal_steps']))}")
    return seconds, scaled


def publish(modality: str, pages: Path) -> None:
    """The table into results.md, and its picture beside that."""
    rows, minutes = rows_of(record(modality, pages))
    if not rows:
        return
    picture(rows, pages / f"table_{modality}.png", f"{modality}: {minutes:.1f} minutes each")
    lines = [*lines_of(rows), "", f"![k-NN and probe](table_{modality}.png)"]
    names = {file_name(name) for name in TEACHING}
    taught = [row for row in rows if not row.steps or row.name in names]
    if {row.name for row in taught} >= {"data2vec2", file_name(CONTROL)}:
        picture(taught, pages / f"teacher_{modality}.png", f"{modality}: what a teacher adds in {minutes:.1f} minutes")
        lines += ["", f"![data2vec 2.0 beside what has no teacher that learns](teacher_{modality}.png)"]
    start, end = (mark.format(modality) for mark in MARKS)
    put(pages / "results.md", lines, start, end, f"All methods: {modality}")


def put(page: Path, lines: list[str], start: str, end: str, title: str) -> None:
    """Lines between their marks on a page, or below a title of their own at its end if it has no such marks."""
    shown, text = "\n".join([start, "", *lines, "", end]), page.read_text()
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        text += f"\n## {title}\n\n{shown}\n"
    with written(page) as draft:
        draft.write_text(pattern.sub(lambda _: shown, text))


def rows_of(done: dict[str, Any]) -> tuple[list[Row], float]:
    """Controls first, then methods from the best k-NN down; the median of the minutes that each took to train."""
    found: dict[str, list[dict]] = {}
    for key in sorted(done):
        found.setdefault(key.rsplit("_", 1)[0], []).append(done[key])
    rows, controls, minutes = [], {}, []
    for name, seeds in found.items():
        scores = []
        for seed in seeds:
            for model, values in seed["rows"].items():
                if model == "export":
                    scores.append(values)
                else:
                    controls[model] = values
            steps = int(seed["settings"][0].partition("=")[2])
            minutes.append(seed["step"] * steps / 60)
        rows.append(Row(name, [score(s, "k-NN") for s in scores], [score(s, "linear") for s in scores], steps))
    rows.sort(key=lambda row: -statistics.mean(row.knn))
    first = [Row(name, [score(s, "k-NN")], [score(s, "linear")], 0) for name, s in controls.items()]
    return first + rows, statistics.median(minutes) if minutes else 0.0


def score(scores: dict[str, float], kind: str) -> float:
    """The one of a kind, among other groups where there are any."""
    names = [name for name in scores if name.startswith(kind)]
    return scores[next((name for name in names if "other" in name), names[0])]


def lines_of(rows: list[Row]) -> list[str]:
    """Markdown; rows whose k-NN and probe are both no better than the random init's say so."""
    random = next((row for row in rows if row.name.startswith("random init")), None)
    lines = ["| | steps | k-NN | linear probe | |", "|---|---|---|---|---|"]
    for row in rows:
        note = ""
        if random is not None and row.steps:
            rises = [
                name
                for name, mine, base in (("k-NN", row.knn, random.knn), ("probe", row.probe, random.probe))
                if statistics.mean(mine) > statistics.mean(base)
            ]
            note = {0: "does not rise", 1: f"only its {rises[0] if rises else ''} rises", 2: ""}[len(rises)]
        cells = [row.name, str(row.steps or ""), seeds_of(row.knn), seeds_of(row.probe), note]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def seeds_of(scores: list[float]) -> str:
    """A cell with the score of each seed."""
    return "; ".join(f"{score:.1f}" for score in scores)


def picture(rows: list[Row], path: Path, title: str) -> None:
    """A dot for each seed, from the best row down."""
    figure = Figure(figsize=(7, 1 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(("knn", "probe")):
        for height, row in enumerate(reversed(rows)):
            values = getattr(row, name)
            axes[place].plot(
                values, [height] * len(values), "o" if row.steps else "s", color="C0" if row.steps else "0.5"
            )
        axes[place].set(xlabel={"knn": "k-NN (%)", "probe": "linear probe (%)"}[name])
        axes[place].grid(axis="both", alpha=0.2)
    axes[0].set_yticks(range(len(rows)), [row.name for row in reversed(rows)], fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
