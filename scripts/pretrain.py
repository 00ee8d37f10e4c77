"""Pretrains an encoder.

accelerate launch scripts/pretrain.py CONFIG key=value ...

CONFIG is a YAML file such as those in configs/<modality>/, whose header says what it is for; any of its settings can be given another value, e.g.
data.path=photos/ run.dir=runs/photos. The encoder is written to the run's export/; the same command goes on after a kill.
"""

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from d2v import plugins
from d2v.config.cli import run_cli
from d2v.config.loading import load_config, save_yaml
from d2v.config.schema import Config
from d2v.files import files_in
from d2v.objectives.common.objective import Objective
from d2v.training.checkpoint import found
from d2v.training.export import export, model_card
from d2v.training.health import HealthCheck
from d2v.training.init_from import bring_preparation, start_from
from d2v.training.loop import Loop
from d2v.training.online_probe import OnlineProbe
from d2v.training.run_folder import BadSamples, check_apart, check_settings, new_run, record_trackers
from d2v.training.setup import build_objective, open_accelerator

FILES = ("config.yaml", "metrics.jsonl", "bad_steps.jsonl", "bad_samples.jsonl", "curves.png", "spectrum.png")


def main(arguments: list[str]) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not arguments:
        raise ValueError("usage: accelerate launch scripts/pretrain.py CONFIG key=value ...")
    config = load_config(arguments[0], arguments[1:])
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    folder, train, evaluate = Path(config.run.dir), config.train, config.evaluate
    sources = {
        "data.path": config.data.path,
        "data.tokenizer": vars(config.data).get("tokenizer"),
        "train.init_from": train.init_from,
    }
    check_apart(
        folder,
        sources
        | {"evaluate.path": evaluate.path, "evaluate.masks": evaluate.masks, "run.probe.path": config.run.probe.path},
    )
    modality = plugins.load("d2v.modalities", config.modality)
    accelerator = open_accelerator(train, config.run, unused=config.model.trunk.drops_layers)
    with new_run(folder, FILES, overwrite=config.run.overwrite) if accelerator.is_main_process else nullcontext():
        loop, report = assemble(config, modality, accelerator)
    verdict = loop()
    if accelerator.is_main_process:
        card = model_card(config, loop.history.records, verdict, report, num_parameters(loop.objective))
        export(
            loop.objective,
            folder / "export",
            config,
            lambda place: modality.save_preprocessor(place, folder, config.data, config.frontend),
            card,
        )
        advice = f" Advice: {verdict.advice}." if verdict.advice else ""
        print(f"verdict: {verdict.state}: {verdict.reason}.{advice}")
        print(f"encoder in {folder / 'export'}, curves in {folder / 'curves.png'}")
    accelerator.end_training()


def assemble(config: Config, modality, accelerator: Accelerator) -> tuple[Loop, list[str]]:
    """The loop of a run, and what is said of its data; all that can be wrong with settings or files shows here. ValueError: it is."""
    folder, train, run = Path(config.run.dir), config.train, config.run
    with accelerator.main_process_first():
        bring_preparation(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        modality.prepare(config.data, config.frontend, folder, train.seed)
        check_settings(folder, config.as_dict(), run.resume)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
    report = samples.report.lines()
    accelerator.print("\n".join(report))
    if run.trackers:
        before = files_in(folder)
        accelerator.init_trackers("d2v", config={key: str(value) for key, value in config.as_dict().items()})
        record_trackers(folder, before)

    set_seed(train.seed)
    objective = build_objective(config, len(samples))
    if train.init_from and not found(folder / "checkpoints"):
        accelerator.print("\n".join(start_from(objective, train.init_from, config)))
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    accelerator.print(
        f"encoder: {num_parameters(objective) / 1e6:.2f} M parameters; {train.steps} steps of {train.batch_size} samples"
    )
    bad_log = BadSamples(folder / "bad_samples.jsonl")
    batches = modality.batches(samples, config.data, config.frontend, train.batch_size, train.seed, bad_log)
    health = health_check(config, modality, samples, folder) if accelerator.is_main_process else None
    probe = online_probe(config, modality, folder) if run.probe.path and accelerator.is_main_process else None
    objective.check(batches(0, 0, train.batch_size)[0])  # of one sample
    if (
        accelerator.is_main_process
    ):  # only now: a command that failed until here does not bind the folder to its settings
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
        samples = modality.Samples(data, config.frontend, split=evaluate.train_split, folder=folder)
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
    splits = [
        modality.Samples(data, config.frontend, split=split, folder=folder)
        for split in (probe.train_split, probe.test_split)
        if split
    ]
    return OnlineProbe(splits[0], splits[1] if probe.test_split else None, probe)


if __name__ == "__main__":
    run_cli(main)
