"""What a GPU says of this project, in jobs ordered by worth: tests, its own rates, steps beside transformers, curves.

    python benchmarks/gpu.py [JOB ...] [minutes=9] [out=runs/gpu] [cifar10=PATH] [share=0.1] [device=cuda]

JOB: jobs whose names contain one of these words; all, without any. A job that is done is kept in out/gpu.json and not
done again; one that the minutes cut off is started anew by the next call, but for curves, which go on from their last
checkpoint. cifar10: the data set as a folder or table, for the curves (the Hub's, without). share: of the recipes' own
steps. At the end it prints the tables for dev/LOG.md.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from d2v.files import written

ROOT = Path(__file__).resolve().parent.parent
STEPS = {  # recipe and samples of a step that one card of 80 GB holds
    "image/data2vec2_base": 64,
    "image/data2vec_base": 128,
    "speech/data2vec2_base": 12,
    "speech/data2vec_base": 16,
    "text/data2vec2_base": 16,
    "text/data2vec_base": 64,
    "image/moco_base": 256,
    "image/dino_base": 64,
    "image/mae_base": 256,
    "image/ijepa_base": 128,
}
CURVES = [f"image/{method}_cifar" for method in ("simclr", "moco", "byol", "dino", "simsiam", "swav", "mocov3")]
SPARE = 20.0  # seconds in which a curve saves


class Job(NamedTuple):
    """Something to be measured: a function of gpu_work.py with what it is given, or a command line."""

    name: str
    function: str = ""
    arguments: tuple = ()
    command: tuple[str, ...] = ()


def main(arguments: list[str]) -> int:
    """`argv`; the number of jobs that failed."""
    given = dict(argument.partition("=")[::2] for argument in arguments if "=" in argument)
    words = [argument for argument in arguments if "=" not in argument]
    if given.keys() - {"minutes", "out", "cifar10", "share", "device"}:
        raise SystemExit(__doc__)
    out, device = Path(given.get("out", "runs/gpu")), given.get("device", "cuda")
    end = time.monotonic() + 60 * float(given.get("minutes", 9))
    chosen = jobs(device, out, given.get("cifar10", ""), float(given.get("share", 0.1)))
    if words:
        chosen = [job for job in chosen if _is_named(job, words)]
    if not chosen:
        raise SystemExit(f"no job is named like {' '.join(words)}\n{__doc__}")
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for job in chosen:
        left = end - time.monotonic()
        if job.name in record(out) or left < SPARE:
            continue
        began = time.monotonic()
        print(f"{job.name} ...", flush=True)
        found = run_command(job, left - SPARE) if job.command else run_function(job, left)
        failed += "error" in found
        print(f"{job.name}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
        if not found.keys() & {"error", "unfinished"}:
            keep(out, job.name, {**found, "seconds": time.monotonic() - began})
    print("\n".join(tables(record(out))))
    return failed


def _is_named(job: Job, words: list[str]) -> bool:
    return any(word in job.name for word in words)


def jobs(device: str, out: Path, cifar10: str, share: float) -> list[Job]:
    """All, the most telling first."""
    found = [
        Job(
            "tests", command=(sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", str(ROOT / "tests/test_gpu.py"))
        ),
        Job("rates", "rates", (device,)),
    ]
    for recipe, rows in STEPS.items():
        found.append(Job(f"step {recipe}", "step", (device, recipe, rows)))
        if not recipe.startswith("image/moco"):  # compiled are the trunk's blocks, of which a ResNet has none
            found.append(Job(f"step {recipe} compiled", "step", (device, recipe, rows, "train.compile=true")))
        if recipe.endswith("/data2vec_base"):
            modality = recipe.partition("/")[0]
            found.append(Job(f"peer {modality}", "peer", (device, modality)))
    found += [Job(f"curve {recipe}", command=curve(recipe, out, cifar10, share)) for recipe in CURVES]
    return found


def curve(recipe: str, out: Path, cifar10: str, share: float) -> tuple[str, ...]:
    """The command that trains a recipe, or goes on with it."""
    from d2v.config.loading import load_config  # after the option's errors: it takes seconds

    train = load_config(recipe, ["data.path=none", "run.dir=none"]).train
    steps = max(1, round(share * train.steps))
    settings = [f"train.steps={steps}", f"train.warmup_steps={round(share * train.warmup_steps)}"]
    settings += [f"data.path={cifar10}"] if cifar10 else []
    settings += ["train.mixed_precision=bf16", "run.workers=14", "run.save_every=500", "run.log_every=100"]
    folder = out / recipe.replace("/", "_")
    return (sys.executable, "-m", "d2v", "pretrain", recipe, "data/cifar10", *settings, f"run.dir={folder}")


def run_command(job: Job, seconds: float) -> dict[str, Any]:
    """What a command left; after `seconds` it is asked to save and to end."""
    process = subprocess.Popen(
        job.command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(SPARE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        return {"unfinished": True, **last_health(job)}
    return {"error": f"exit code {code}"} if code else last_health(job)


def last_health(job: Job) -> dict[str, Any]:
    """Step, k-NN and speed of a run by its last records; nothing of other commands."""
    folder = Path(job.command[-1].removeprefix("run.dir="))
    found: dict[str, Any] = {}
    path = ROOT / folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        values = json.loads(line)
        for name in ("step", "student_knn", "samples_per_second", "loss", "data_wait"):
            found[name] = values.get(name, found.get(name))
    return found


def run_function(job: Job, seconds: float) -> dict[str, Any]:
    """The answer of a function, in a process that has imported what it needs, whose memory goes with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpu_work"])
    mine, its = context.Pipe()
    process = context.Process(target=answer, args=(its, job.function, job.arguments))
    process.start()
    its.close()
    try:
        return mine.recv() if mine.poll(seconds) else {"unfinished": True}
    except EOFError:
        return {"error": "the process ended without an answer"}
    finally:
        process.kill()


def answer(pipe: Connection, function: str, arguments: tuple) -> None:
    """In a process of its own."""
    import gpu_work

    try:
        pipe.send(getattr(gpu_work, function)(*arguments))
    except Exception as error:  # the others go on, whatever it was
        traceback.print_exc()
        pipe.send({"error": f"{type(error).__name__}: {error}"})


def record(out: Path) -> dict[str, Any]:
    """The jobs that are done, by name."""
    path = out / "gpu.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def keep(out: Path, name: str, found: dict) -> None:
    """Adds a job to the record."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    done = {**record(out), name: {**found, "commit": commit.strip()}}
    with written(out / "gpu.json") as draft:
        draft.write_text(json.dumps(done, indent=1) + "\n")


def tables(done: dict[str, Any]) -> list[str]:
    """A Markdown table for each kind of job; of steps also the share of the card's own rate in bf16."""
    lines: list[str] = []
    rate = done.get("rates", {}).get("bf16 TFLOP/s")
    for kind in ("rates", "step", "peer", "curve"):
        rows = {name: values for name, values in done.items() if name.split()[0] == kind}
        if not rows:
            continue
        for values in rows.values():
            if rate and "TFLOP/s" in values:
                values["of rate, %"] = 100 * values["TFLOP/s"] / rate
        columns = [name for name in next(iter(rows.values())) if name not in ("seconds", "commit")]
        lines += ["", f"| {kind} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, values in rows.items():
            cells = [cell(values.get(column)) for column in columns]
            lines.append(f"| {name.removeprefix(kind).strip()} | {' | '.join(cells)} |")
    return lines


def cell(value: Any) -> str:
    """Four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value if value is not None else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
