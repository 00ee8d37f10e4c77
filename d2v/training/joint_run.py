"""One joint run, from a config of several parts to one exported encoder."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from d2v import files, plugins
from d2v.config.joint import JointConfig
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.own import own_layers, plain_name
from d2v.models.slices import fill_trunk
from d2v.objectives.common.objective import Objective
from d2v.objectives.common.parts import AUTO, BETWEEN, names_of
from d2v.objectives.joint import Joint
from d2v.protocols import Batches, ScoredSplit
from d2v.reading import Limit, Reader
from d2v.shown import printable
from d2v.training.export import export, model_card
from d2v.training.forecast import where
from d2v.training.inherited import resumes
from d2v.training.joint_batches import JointBatches
from d2v.training.joint_health import JointHealth
from d2v.training.joint_origins import adopt_many, start_from_many
from d2v.training.joint_weights import weigh
from d2v.training.length import bind, check_length
from d2v.training.loop import Loop
from d2v.training.maps import token_maps
from d2v.training.online_probe import JointProbe
from d2v.training.page import Shown, write_page
from d2v.training.pretraining import (
    FILES,
    advice,
    check_method,
    health_check,
    num_parameters,
    online_probe,
    say_how_it_stands,
    sources,
    summary_of,
    uses_of_splits,
)
from d2v.training.run_folder import BadSamples, check_apart, check_settings, check_shared, new_run
from d2v.training.same_data import DataCheck
from d2v.training.setup import build_objective, checkpoint_activations, dry_folder, open_accelerator, open_trackers
from d2v.training.sizes import check_memory
from d2v.training.verdict import Verdict


class Part(NamedTuple):
    """What a part trains on."""

    samples: Any
    batches: Batches
    report: list[str]
    same_data: DataCheck


def pretrain_joint(config: JointConfig) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    folder, parts = Path(config.run.dir), list(config.data)
    for part in parts:
        with names_of(part):
            check_apart(folder, _sources(config, part))
    for name, probe in config.run.probe.items():
        if name not in parts:  # of a modality that pairs alone read
            check_apart(folder, {f"run.probe.{name}.path": probe.path})
    # each part has its own backward pass, which gives the parameters of others no gradient
    unused = config.model.trunk.drops_layers or len(parts) > 1
    accelerator = open_accelerator(config.train, config.run, unused=unused)
    accelerator.print(where(accelerator))
    with dry_folder(config.run, accelerator):
        _run(config, accelerator)
    accelerator.end_training()


def _sources(config: JointConfig, part: str) -> dict:
    """What a part reads, by the setting that names it."""
    if BETWEEN in part:
        return {"data.path": _paths(config, part)}
    return sources(config.of(part), plugins.load("d2v.modalities", part))


def _paths(config: JointConfig, part: str) -> Any:
    """Where a part's samples are: of pairs what both sides read."""
    data = config.data[part]
    if BETWEEN not in part:
        return data.path
    found = [plugins.pairs().side_of(data, name).path for name in part.split(BETWEEN)]
    return found[0] if found[0] == found[1] else found


def _run(config: JointConfig, accelerator: Accelerator) -> None:
    """Trains in run.dir, which other processes of the same command read, and the main process writes."""
    folder, main = Path(config.run.dir), accelerator.is_main_process
    names, prepared = [f"samples_{part}.json" for part in config.data], set[str]()
    for name in config.model.frontends:
        names += [f"curves_{name}.png", f"spectrum_{name}.png"]
        prepared |= {*plugins.load("d2v.modalities", name).PREPARED}
    with files.locked(folder) if main else nullcontext():
        check_shared(folder, accelerator)
        new = new_run(folder, (*FILES, *names), sorted(prepared), overwrite=config.run.overwrite)
        with new if main else nullcontext():
            loop, report = assemble(config, accelerator)
        verdict = loop()
        if not main or config.run.dry:
            return
        if loop.was_reported:
            print(f"{folder} holds this run, finished: nothing is changed")
        else:
            _write_results(config, loop, verdict, report)
        for name, one in loop.health.verdicts(loop.history.records).items():
            print(f"{name}: {one.state}: {one.reason}")
        say_how_it_stands(folder, verdict)


def assemble(config: JointConfig, accelerator: Accelerator) -> tuple[Loop, list[str]]:
    """The loop of a run, and what is said of its data; all that can be wrong with settings or files shows here.

    ValueError: it is.
    """
    folder, train, run = Path(config.run.dir), config.train, config.run
    with accelerator.main_process_first():
        origins = adopt_many(config, folder, accelerator.print)
        folder.mkdir(parents=True, exist_ok=True)
        _prepare(config, folder)
        check_settings(folder, config, run.resume, free=())  # each micro-batch has its own means
        parts = {part: _open(config, part, accelerator) for part in config.data}
    report = []
    for name, part in parts.items():
        report += [f"{name}: {line.removeprefix(f'{name}: ')}" for line in part.report]
    accelerator.print("\n".join(report))
    counts = {name: len(part.samples) for name, part in parts.items()}
    check_memory(config, lambda config: build_joint(config, counts), accelerator.device)
    for name, part in parts.items():
        with names_of(name):
            part.same_data(_paths(config, name), [ScoredSplit(part.samples, range(len(part.samples)), ())])
    open_trackers(accelerator, config)

    set_seed(train.seed)
    resumed = resumes(folder)
    begins = {} if resumed else {name: part.samples for name, part in parts.items()}
    objective = build_joint(config, counts, begins)
    check_length(folder, config, objective, setting="train.init_from")
    accelerator.print(*start_from_many(objective, origins), sep="\n", end="\n" if origins else "")
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    size = f"{num_parameters(objective) / 1e6:.2f} M parameters"
    accelerator.print(f"encoder: {size}; {train.steps} steps, {config.objective.mix}, of {train.samples()}")

    health = probe = None
    if accelerator.is_main_process:
        health = _health(config, parts, folder)
        probe = _probe(config, folder)
    for name, part in parts.items():
        with names_of(name):
            check_method(objective.parts[name], part.batches, config.of(name), part.same_data, accelerator)
    batches = JointBatches({name: part.batches for name, part in parts.items()}, objective.mix)
    if config.objective.weights == AUTO and not resumed:
        accelerator.print(weigh(objective, batches, accelerator, config.objective.measured_steps))
    loop = Loop(objective, batches, train=train, run=run, accelerator=accelerator, health=health, probe=probe)
    if accelerator.is_main_process:
        # Only now: a command that failed until here does not bind the folder to its settings.
        bind(folder, config)
        for part in parts.values():
            part.same_data.save()
    return loop, report


def _prepare(config: JointConfig, folder: Path) -> None:
    """What the run needs of its data (a tokenizer), once for each modality: of the data that it reads alone, if it
    does."""
    done = set()
    for part in sorted(config.data, key=lambda part: BETWEEN in part):
        for name in part.split(BETWEEN):
            if name in done:
                continue
            done.add(name)
            frontend, seed = config.model.frontends[name], config.train.seed
            with names_of(part):
                if BETWEEN in part:
                    plugins.pairs().prepare(config.data[part], name, frontend, folder, seed)
                else:
                    plugins.load("d2v.modalities", name).prepare(config.data[part], frontend, folder, seed)


def _open(config: JointConfig, part: str, accelerator: Accelerator) -> Part:
    """The samples of a part and its batches."""
    folder, data, size = Path(config.run.dir), config.data[part], config.train.batch_size[part]
    bad_log = BadSamples(folder / "bad_samples.jsonl")
    own = config.of(part)
    with names_of(part):
        if BETWEEN in part:
            kind, frontend = plugins.pairs(), own.model.frontends
        else:
            kind, frontend = plugins.load("d2v.modalities", part), own.frontend
        samples = kind.Samples(data, frontend, split=data.split, folder=folder)
        limited = Limit(bad_log, data.max_bad_share, len(samples))
        batches = kind.batches(samples, data, frontend, size, config.train.seed, limited)
        report = [*samples.report.lines()]
        if BETWEEN not in part:
            report += [uses_of_splits(own, samples.report.splits), *advice(samples.report)]
    remembers = config.objective.parts[part].name if "num_samples" in vars(config.objective.parts[part]) else ""
    same_data = DataCheck(accelerator, folder, config.run, remembers=remembers, part=part)
    return Part(samples, batches, report, same_data)


def build_joint(
    config: JointConfig, num_samples: dict[str, int], samples: Mapping[str, Any] = MappingProxyType({})
) -> Joint:
    """A new objective, each part of which starts as it would alone; the trunk is that of the first.

    `num_samples`: by part. `samples`: by part, of a run that begins; see build_objective. ValueError: settings that
    contradict one another.
    """
    parts, trunks, frontends = dict[str, Objective](), dict[str, Any](), dict[str, Any]()
    frozen: set[str] = set()
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    checkpoint_activations(encoder, config.train.checkpoint_activations)
    with torch.random.fork_rng(devices=[]):
        for name in config.data:
            torch.manual_seed(config.train.seed)
            family = "d2v.objectives.paired" if BETWEEN in name else "d2v.objectives"
            with names_of(name):
                begin = samples.get(name) if BETWEEN not in name else None
                parts[name] = build_objective(config.of(name), num_samples[name], begin, family)
            alone: Any = parts[name].student["encoder"]
            for modality, (key, frontend) in zip(name.split(BETWEEN), alone.frontends.items(), strict=True):
                if BETWEEN not in name or key not in frontends:
                    frontends[key], trunks[modality] = frontend, alone.trunk
            frozen |= {key for key, p in alone.named_parameters() if not p.requires_grad}
    first = next(iter(config.data)).split(BETWEEN)[0]
    fill_trunk(encoder, {name: trunk.state_dict() for name, trunk in trunks.items()}, first)
    for key, frontend in frontends.items():
        encoder.frontends[key] = frontend
    own = own_layers(encoder)
    for key, parameter in encoder.named_parameters():
        if plain_name(key, own)[0] in frozen:  # by a part's settings
            parameter.requires_grad_(False)
    return Joint(encoder, parts, config.objective, config.train.seed)


def _health(config: JointConfig, parts: dict[str, Part], folder: Path) -> JointHealth:
    """A check for each modality: on the samples that it reads alone, or on its side of pairs."""
    checks = {}
    for part in sorted(parts, key=lambda part: BETWEEN in part):
        own, reader = config.of(part), Reader(config.data[part].max_bad_share, BadSamples(folder / "bad_samples.jsonl"))
        for name in part.split(BETWEEN):
            if name in checks:
                continue
            samples = parts[part].samples if BETWEEN not in part else parts[part].samples.side(name)
            with names_of(part):
                checks[name] = health_check(own, plugins.load("d2v.modalities", name), samples, folder, reader)
            print(f"{name}: {printable(checks[name].said)}")
    return JointHealth(checks)


def _probe(config: JointConfig, folder: Path) -> JointProbe | None:
    """k-NN of each modality that run.probe names; None: it names none."""
    probes = {}
    for name, settings in config.run.probe.items():
        if settings.path:
            own = config.reading(name)
            reader = Reader(own.data.max_bad_share, BadSamples(folder / "bad_samples.jsonl"))
            with names_of(name):
                probes[name] = online_probe(own, plugins.load("d2v.modalities", name), folder, reader)
    return JointProbe(probes) if probes else None


def _write_results(config: JointConfig, loop: Loop, verdict: Verdict, report: list[str]) -> None:
    """Exports the encoder, and writes the page."""
    folder, health, objective = Path(config.run.dir), loop.health, loop.objective
    assert isinstance(health, JointHealth)

    def save_preprocessors(place: Path) -> None:
        for name, frontend in config.model.frontends.items():
            modality = plugins.load("d2v.modalities", name)
            (place / name).mkdir()
            modality.save_preprocessor(place / name, folder, config.reading(name).data, frontend)

    best = health.better(loop.history.records) if len(objective.teacher) else "student"
    card = model_card(config, loop.history.records, verdict, report, num_parameters(objective))
    export(objective, folder / "export", config, save_preprocessors, card, best)
    _write_page(config, loop, verdict, report, best)


def _write_page(config: JointConfig, loop: Loop, verdict: Verdict, report: list[str], best: str) -> None:
    """The run as a page for a person."""
    folder, health = Path(config.run.dir), loop.health
    assert isinstance(health, JointHealth)
    title = f"joint run on {config.modality}: {folder.name}, {loop.progress.step} of {config.train.steps} steps"
    commands = [f"d2v evaluate {folder}/config.yaml model={folder}/export"]
    commands += [f"d2v convert {folder}/export {name}_encoder modality={name}" for name in health.names]
    summary = summary_of(title, config.as_dict(), loop, verdict, report, commands)
    encoder = loop.objective.encoders[("student", "teacher").index(best)]
    maps, sets = [], []
    for name, check in health.checks.items():
        sets.append(Shown(check.samples, check.read, loop.features.get(f"{name}/student"), name))
        maps += token_maps(encoder, name, check, best) if loop.features else []
    write_page(folder, summary, sets, maps)
