"""One run of pretraining, from a config to an exported encoder; what a script does is parse, build, call."""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from d2v import files, plugins
from d2v.config.loading import save_yaml
from d2v.config.schema import Config
from d2v.objectives.common.objective import Objective
from d2v.training.checkpoint import checkpoints_in
from d2v.training.export import export, model_card
from d2v.training.health import HealthCheck
from d2v.training.init_from import bring_preparation, start_from
from d2v.training.loop import Loop
from d2v.training.online_probe import OnlineProbe
from d2v.training.run_folder import LOOP_FILES, BadSamples, check_apart, check_settings, new_run
from d2v.training.setup import build_objective, open_accelerator, open_trackers
from d2v.training.sizes import check_batch, check_memory
from d2v.training.verdict import Verdict

FILES = (*LOOP_FILES, "spectrum.png")


def pretrain(config: Config) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    folder = Path(config.run.dir)
    modality = plugins.load("d2v.modalities", config.modality)
    check_apart(folder, _sources(config, modality))
    accelerator = open_accelerator(config.train, config.run, unused=config.model.trunk.drops_layers)
    with files.locked(folder) if accelerator.is_main_process else nullcontext():
        new = new_run(folder, FILES, modality.PREPARED, overwrite=config.run.overwrite)
        with new if accelerator.is_main_process else nullcontext():
            loop, report = assemble(config, modality, accelerator)
        verdict = loop()
        if accelerator.is_main_process:
            _finish(config, modality, loop, verdict, report)
    accelerator.end_training()


def _sources(config: Config, modality) -> dict:
    """What the run reads, by the setting that names it."""
    return {
        **{f"data.{name}": getattr(config.data, name) for name in ("path", *modality.PREPARED)},
        "train.init_from": config.train.init_from,
        "evaluate.path": config.evaluate.path,
        "evaluate.masks": config.evaluate.masks,
        "run.probe.path": config.run.probe.path,
    }


def assemble(config: Config, modality, accelerator: Accelerator) -> tuple[Loop, list[str]]:
    """The loop of a run, and what is said of its data; all that can be wrong with settings or files shows here.

    ValueError: it is.
    """
    folder, train, run = Path(config.run.dir), config.train, config.run
    with accelerator.main_process_first():
        bring_preparation(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        modality.prepare(config.data, config.frontend, folder, train.seed)
        check_settings(folder, config.as_dict(), run.resume)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
    report = samples.report.lines()
    accelerator.print("\n".join(report))
    check_memory(config, lambda config: build_objective(config, len(samples)), accelerator.device)
    open_trackers(accelerator, config)

    set_seed(train.seed)
    objective = build_objective(config, len(samples))
    if train.init_from and not checkpoints_in(folder / "checkpoints"):
        accelerator.print("\n".join(start_from(objective, train.init_from, config)))
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    size = f"{num_parameters(objective) / 1e6:.2f} M parameters"
    accelerator.print(f"encoder: {size}; {train.steps} steps of {train.batch_size} samples")

    bad_log = BadSamples(folder / "bad_samples.jsonl")
    batches = modality.batches(samples, config.data, config.frontend, train.batch_size, train.seed, bad_log)
    health = probe = None
    if accelerator.is_main_process:
        health = health_check(config, modality, samples, folder)
        probe = online_probe(config, modality, folder) if run.probe.path else None
    views = batches(0, 0, train.batch_size)[0]  # of one sample
    objective.check(views)
    check_batch(config, views, accelerator.num_processes * train.accumulate, accelerator.device)
    if accelerator.is_main_process:
        # Only now: a command that failed until here does not bind the folder to its settings.
        save_yaml(config.as_dict(), folder / "config.yaml")
    return Loop(objective, batches, train=train, run=run, accelerator=accelerator, health=health, probe=probe), report


def num_parameters(objective: Objective) -> int:
    """Of the student's encoder."""
    return sum(p.numel() for p in objective.student["encoder"].parameters())


def health_check(config: Config, modality, samples, folder: Path) -> HealthCheck:
    """On the training samples, or on evaluate.path where that names labelled data."""
    evaluate = config.evaluate
    if evaluate.path:
        data = dataclasses.replace(config.data, path=evaluate.path)
        try:
            samples = modality.Samples(data, config.frontend, split=evaluate.train_split, folder=folder)
        except ValueError as error:  # which names data.path, where the data is that was asked for
            raise ValueError(
                f"evaluate.path is {evaluate.path}, for the health checks ('' takes data.path's files): {error}"
            ) from error
    return HealthCheck(
        samples,
        limit=config.run.health_samples,
        label=evaluate.label,
        group=evaluate.group,
        batch_size=evaluate.batch_size,
    )


def online_probe(config: Config, modality, folder: Path) -> OnlineProbe:
    """k-NN on run.probe.path. ValueError: no usable samples or labels there."""
    probe = config.run.probe
    data = dataclasses.replace(config.data, path=probe.path)

    def samples(split: str):
        return modality.Samples(data, config.frontend, split=split, folder=folder)

    return OnlineProbe(samples(probe.train_split), samples(probe.test_split) if probe.test_split else None, probe)


def _finish(config: Config, modality, loop: Loop, verdict: Verdict, report: list[str]) -> None:
    """Exports the encoder and says how the run stands."""
    folder = Path(config.run.dir)

    def save_preprocessor(place: Path) -> None:
        modality.save_preprocessor(place, folder, config.data, config.frontend)

    card = model_card(config, loop.history.records, verdict, report, num_parameters(loop.objective))
    export(loop.objective, folder / "export", config, save_preprocessor, card)
    advice = f" Advice: {verdict.advice}." if verdict.advice else ""
    print(f"verdict: {verdict.state}: {verdict.reason}.{advice}")
    print(f"encoder in {folder / 'export'}, curves in {folder / 'curves.png'}")
