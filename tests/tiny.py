"""Tiny runs for tests: every modality and objective on disk, by a demo or tiny config made smaller.

They run in this process, or in others. A fork server starts those: it imports the libraries once; each process that it
forks is fresh, and may be killed.
"""

import copy
import functools
import json
import multiprocessing
import os
import re
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from d2v import plugins
from d2v.config.loading import load_config
from d2v.config.schema import Config
from d2v.finetuning import outcome
from d2v.objectives.common.objective import Objective
from d2v.training import joint_run, pretraining
from d2v.training.distributed import all_sum
from d2v.training.health import HealthCheck
from d2v.training.loop import Loop
from d2v.training.setup import build_objective, data_parallel
from d2v.types import Pooled
from scripts import pretrain

ROOT = Path(__file__).resolve().parent.parent
# what the fork server and its children start with; one thread, because the order of sums depends on their number
os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true", PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
torch.set_num_threads(1)
MODALITIES = plugins.available("d2v.modalities")
OBJECTIVES = plugins.available("d2v.objectives")
TRUNK = (
    "model.trunk.dim=32",
    "model.trunk.depth=2",
    "model.trunk.num_heads=2",
    "model.trunk.mlp_dim=64",
    "objective.top_k=2",
)
SHORT = (
    "train.steps=20",
    "train.warmup_steps=1",
    "train.batch_size=4",
    "run.log_every=1",
    "run.save_every=10",
    "run.health_samples=16",
    "run.health_every=10",
)
DROPOUT = (
    "model.trunk.dropout=0.1",
    "model.trunk.attention_dropout=0.1",
    "model.trunk.layer_drop=0.3",
    "model.trunk.drop_path=0.1",
)
# of objectives that the demo configs do not use: their tiny config on the demo's data, and what makes it small and
# free of chance
DEMO_DATA = ("data.path=demo", "data.split=train", "evaluate.path=''")
SMALL = {
    "beit": ("objective.num_codes=64",),
    "electra": ("objective.dim=16", "objective.depth=1", "objective.num_heads=2"),
    "best_rq": ("objective.num_codes=64",),
    "mae": (
        "objective.decoder.dim=16",
        "objective.decoder.num_heads=2",
        "objective.decoder.depth=1",
        "train.eps=1.0e-6",  # the gradient of a key's bias is zero but for rounding, which a smaller one makes steps of
    ),
    "dinosr": ("objective.num_codes=8", "objective.freeze_share=1.0"),
    "spidr": ("objective.num_codes=8",),
    "wav2vec2": ("objective.out_dim=8", "objective.num_codes=6", "objective.negatives=5"),
    "ijepa": ("objective.predictor.dim=16", "objective.predictor.depth=1", "objective.predictor.num_heads=2"),
    "capi": ("objective.num_codes=16", "objective.predicted_share=0.5", "objective.predictor.depth=1"),
    "mochi": ("objective.start_step=0", "objective.hardest=16"),
    "ibot": ("data.mask_views=true",),
    "wmse": ("objective.out_dim=2", "objective.sub_batch=4"),
    "jigsaw": ("model.frontends.image.image_size=12", "objective.tile_size=2"),
    "pirl": ("model.frontends.image.image_size=12", "objective.tile_size=2"),
    "data2vec2": (
        "objective.decoder.dim=16",
        "objective.decoder.groups=2",
        "objective.decoder.noise=0.0",
        "data.masks=2",
    ),
}
# two equal views, which are the first kind of text's without dropout, teach these nothing: their loss is 0
DIFFERENT = ("wmse",)
# methods that read whole views, but only of pixels
OF_IMAGES = ("rotnet", "jigsaw", "pirl")
# and of these those that do not compare samples: they may be trained in micro-batches where there is no batch norm
ALONE = ("rotnet",)

LEAVE_OUT = ("ijepa", "capi")  # which do not read what is hidden, as data2vec2


def arguments(modality: str, folder: Path | str, *more: str) -> list[str]:
    """The command line of a run of 20 steps; `objective={name: ...}` among `more` takes that objective's config."""
    folder_of, names = (
        ROOT / "configs" / modality,
        [match[1] for key in more if (match := re.fullmatch(r"objective=\{name: (\w+)\}", key))],
    )
    name = names[0] if names else "data2vec"
    if name == "data2vec":
        return [str(folder_of / "demo.yaml"), *TRUNK, *SHORT, f"run.dir={folder}", *more]
    if compares_views(name):
        return [
            str(demo_of(modality, name)),
            *TRUNK[:-1],
            *SHORT,
            *small_heads(name),
            *SMALL.get(name, ()),
            f"run.dir={folder}",
            *more,
        ]
    return [
        str(prediction_of(modality, name)),
        *(TRUNK if "top_k" in vars(plugins.load("d2v.objectives", name).Config()) else TRUNK[:-1]),
        *SHORT,
        *DEMO_DATA,
        *SMALL.get(name, ()),
        f"run.dir={folder}",
        *more,
    ]


def dropout(objective: str) -> tuple[str, ...]:
    """DROPOUT, but for a method that reads every layer of the student."""
    return tuple(key for key in DROPOUT if objective != "spidr" or "layer_drop" not in key)


def compares_views(objective: str) -> bool:
    """Whether an objective compares whole views instead of predicting hidden tokens."""
    return hasattr(plugins.load("d2v.objectives", objective).Config, "num_views")


@functools.cache
def prediction_of(modality: str, objective: str) -> Path:
    """The tiny config of an objective that predicts hidden tokens; where a modality has none, data2vec's with it."""
    folder = ROOT / "configs" / modality
    if (path := folder / f"{objective}_tiny.yaml").exists():
        return path
    basis = folder / ("data2vec2_tiny.yaml" if objective in LEAVE_OUT else "data2vec_tiny.yaml")
    path = scratch() / f"{modality}_{objective}_tiny.yaml"
    path.write_text(f"base: {basis}\nobjective: {{name: {objective}}}\n", "utf-8")
    return path


def averages_layers(objective: str) -> bool:
    """Whether its targets are averaged layers: data2vec's methods, whose whole runs are with every modality."""
    settings = vars(plugins.load("d2v.objectives", objective).Config())
    return "top_k" in settings and "num_codes" not in settings


def fits(modality: str, objective: str) -> bool:
    """Whether an objective makes sense with a modality: one that predicts hidden tokens has a tiny config there."""
    if objective in OF_IMAGES:
        return modality == "image"
    return compares_views(objective) or (ROOT / "configs" / modality / f"{objective}_tiny.yaml").is_file()


def in_turn(modality: str, objective: str) -> bool:
    """Whether whole runs of this pair belong to the fast tests.

    Each method but data2vec's has them with one modality, in turn.
    """
    fitting = [name for name in MODALITIES if fits(name, objective)]
    turn = fitting[OBJECTIVES.index(objective) % len(fitting)]
    return modality == turn or averages_layers(objective)


def small(objective: str) -> tuple[str, ...]:
    """Overrides that make the decoder of an objective that predicts hidden tokens small."""
    return tuple(key for key in SMALL.get(objective, ()) if key.startswith("objective."))


def small_heads(objective: str, given: dict[str, Any] | None = None) -> list[str]:
    """Overrides that make every large number of an objective's settings, default or `given`, 64.

    Widths, queues, prototypes.
    """
    settings = vars(plugins.load("d2v.objectives", objective).Config()) | (given or {})
    return [f"objective.{name}=64" for name, value in settings.items() if type(value) is int and value > 64]


@functools.cache
def demo_of(modality: str, objective: str) -> Path:
    """The demo's config with another objective and as many views of the modality's ordinary kind as that compares."""
    values = OmegaConf.load(ROOT / "configs" / modality / "demo.yaml")
    kind = plugins.load("d2v.modalities", modality).VIEWS[objective in DIFFERENT]
    views = [kind] * plugins.load("d2v.objectives", objective).Config.num_views
    values.objective, values.data = {"name": objective}, {"path": "demo", "views": views, **kept(values.data)}
    OmegaConf.save(values, path := scratch() / f"{modality}_{objective}.yaml")
    return path


def kept(data: Any) -> dict[str, Any]:
    """The settings of a demo's data that views leave in force: not those of masks, packing, crops and colours."""
    unread = ("mask", "pack", "path", "min_block", "crop_scale", "color_jitter")
    return {name: value for name, value in data.items() if not any(word in name for word in unread)}


def using(objective: str) -> str:
    """The override that chooses an objective."""
    return f"objective={{name: {objective}}}"


def config_of(modality: str, folder: Path | str, *more: str) -> Config:
    """The same as a Config."""
    path, *overrides = arguments(modality, folder, *more)
    return load_config(path, overrides)


_samples: dict[str, tuple[Any, Any]] = {}


def samples_of(config: Config, prepared: Path | None = None) -> Any:
    """The samples of a config, made once; fills what `prepare` fills.

    `prepared`: a folder in which `prepare` has worked or shall work.
    """
    modality, key = plugins.load("d2v.modalities", config.modality), repr((config.data, config.frontend))
    if key not in _samples:
        prepared = prepared or Path(tempfile.mkdtemp(dir=scratch()))
        prepared.mkdir(parents=True, exist_ok=True)
        modality.prepare(config.data, config.frontend, prepared, config.train.seed)
        _samples[key] = (
            modality.Samples(config.data, config.frontend, split=config.data.split, folder=prepared),
            copy.deepcopy(config.frontend),
        )
    samples, frontend = _samples[key]
    config.model.frontends[config.modality] = copy.deepcopy(frontend)
    return samples


def objective_of(config: Config, prepared: Path | None = None) -> Objective:
    """Seeded as scripts/pretrain.py does it."""
    samples = samples_of(config, prepared)
    set_seed(config.train.seed)
    return build_objective(config, len(samples))


def batches_of(config: Config, prepared: Path | None = None) -> Any:
    """The training batches of a config."""
    samples = samples_of(config, prepared)
    modality = plugins.load("d2v.modalities", config.modality)
    return modality.batches(samples, config.data, config.frontend, config.train.batch_size, config.train.seed)


def loop_of(
    config: Config,
    *,
    batches: Any = None,
    objective: Objective | None = None,
    health: bool = False,
    prepared: Path | None = None,
) -> Loop:
    """A Loop that writes to the config's run.dir."""
    Path(config.run.dir).mkdir(parents=True, exist_ok=True)
    objective = objective or objective_of(config, prepared)
    batches = batches or batches_of(config, prepared)
    check = (
        HealthCheck(samples_of(config), limit=config.run.health_samples, label="label", group="") if health else None
    )
    accelerator = Accelerator(kwargs_handlers=[data_parallel(unused=config.model.trunk.drops_layers)])
    set_seed(config.train.seed, device_specific=True)
    return Loop(objective, batches, train=config.train, run=config.run, accelerator=accelerator, health=check)


# Pictures of a run, of which matplotlib draws each for seconds: none, but where a test asks for them.

DRAWN = ((Loop, "plot"), (pretraining, "token_maps"), (joint_run, "token_maps"), (outcome, "plot_confusion"))
DRAWING = {(owner, name): getattr(owner, name) for owner, name in DRAWN}


def _draw(wanted: bool) -> None:
    for owner, name in DRAWN:
        setattr(owner, name, DRAWING[owner, name] if wanted else _nothing)


def _nothing(*_: Any) -> list:
    return []


_draw(False)


@contextmanager
def pictures(*, wanted: bool = True) -> Iterator[None]:
    """Within it runs draw theirs, if wanted; see the marker of the same name."""
    before = Loop.plot is not _nothing
    _draw(wanted)
    try:
        yield
    finally:
        _draw(before)


# What a run has left.


def load(path: Path) -> dict[str, Tensor]:
    """Copies: what safetensors hands out is the file's own memory."""
    return {name: value.clone() for name, value in load_file(path).items()}


def checkpoint_tensors(folder: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint: student, teacher, heads, optimizer moments."""
    place = folder / "checkpoints" / f"{step:08d}"
    tensors = load(place / "model.safetensors")
    optimizer = torch.load(place / "optimizer.bin", weights_only=True)
    for number, state in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    assert any("exp_avg_sq" in name for name in tensors)
    return tensors


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to the bit."""
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; every step is there once."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    pairs = [(record["step"], record["loss"]) for record in records if "loss" in record]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def known(metric: Tensor | Pooled) -> Tensor:
    """What is logged of a metric; every process of a group asks for it."""
    return metric.value(all_sum(metric.sums)) if isinstance(metric, Pooled) else metric


@functools.cache
def scratch() -> Path:
    """A folder that goes when Python does."""
    return Path(_keep(tempfile.TemporaryDirectory(prefix="d2v-tests-")).name)


_kept: list[Any] = []


def _keep(thing: Any) -> Any:
    _kept.append(thing)
    return thing


@functools.cache
def finished(modality: str, objective: str = "data2vec") -> Path:
    """The folder of a whole run of scripts/pretrain.py, with dropout, made once; data2vec's has pictures."""
    folder = scratch() / f"finished_{modality}_{objective}"
    with pictures(wanted=objective == "data2vec"):
        pretrain.main(arguments(modality, folder, using(objective), *dropout(objective)))
    return folder


def sides(run: Path) -> dict[str, Path]:
    """Where a run's student and teacher are: one in export/, the other in a folder of its name there."""
    export = run / "export"
    other = next((name for name in ("student", "teacher") if (export / name).is_dir()), None)
    if other is None:
        return {"student": export}
    return {other: export / other, {"student": "teacher", "teacher": "student"}[other]: export}


PAIRS = [(m, o) for m in MODALITIES for o in OBJECTIVES if fits(m, o)]
# pairs of modality and objective; pytest -m slow has those that are not in turn
RUNS = [pytest.param(m, o, marks=() if in_turn(m, o) else pytest.mark.slow) for m, o in PAIRS]


def first(values: Iterable, *, of: int = 1) -> list:
    """Parameters of a test, of which pytest -m slow has all but the first `of`."""
    return [pytest.param(value, marks=() if n < of else pytest.mark.slow) for n, value in enumerate(values)]


# Other processes.

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tiny", *(f"modalities.{name}" for name in MODALITIES)])


def start(function: Callable, *args: Any, world: int = 1) -> list:
    """Processes that call `function`, a function of this module or one that can be imported.

    `world` > 1: of one group.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [CONTEXT.Process(target=_child, args=(function, args, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    return processes


def wait(processes: list, timeout: float = 240) -> list[int | None]:
    """Exit codes; what does not end is killed and has the code of that."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _child(function: Callable, args: tuple, rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in group.items()})
    function(*args)


def run(command_line: list[str]) -> None:
    """scripts/pretrain.py, in this process or another."""
    pretrain.main(command_line)


def run_script(command_line: list[str], stderr: Path) -> None:
    """The script as `python scripts/pretrain.py ...` runs it; what it writes to stderr goes to a file."""
    sys.argv = [str(ROOT / "scripts" / "pretrain.py"), *command_line]
    with stderr.open("w") as file:
        os.dup2(file.fileno(), 2)
        runpy.run_path(sys.argv[0], run_name="__main__")


def run_until_killed(command_line: list[str], step: int) -> None:
    """The same; dies by SIGKILL once `step` steps are done."""
    whole = Loop._step

    def dying(self: Loop, batches: Any) -> None:
        whole(self, batches)
        if self.progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Loop._step = dying  # type: ignore[method-assign]
    run(command_line)


def run_until_interrupted(command_line: list[str], step: int) -> None:
    """The same in this process; ends by a KeyboardInterrupt."""
    whole = Loop._step

    def ending(self: Loop, batches: Any) -> None:
        whole(self, batches)
        if self.progress.step == step:
            raise KeyboardInterrupt

    Loop._step = ending  # type: ignore[method-assign]
    try:
        pretrain.main(command_line)
    finally:
        Loop._step = whole  # type: ignore[method-assign]
