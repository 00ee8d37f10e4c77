"""Pretrains an encoder: accelerate launch scripts/pretrain.py CONFIG key=value ...; parse, build, call."""

import dataclasses
from pathlib import Path

import datasets
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from transformers.utils.logging import disable_progress_bar

from d2v import plugins
from d2v.checkpoint import found
from d2v.config import Config, load_config, run_cli, save_yaml
from d2v.configuration import D2vConfig
from d2v.export import export, model_card
from d2v.folder import BadSamples, check_folder, clear
from d2v.health import HealthCheck
from d2v.loop import Loop
from d2v.modeling import D2vModel
from d2v.start import bring_tokenizer, start_from


def main(arguments: list[str]) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not arguments:
        raise ValueError("usage: accelerate launch scripts/pretrain.py CONFIG key=value ...")
    config = load_config(arguments[0], arguments[1:])
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    folder = Path(config.run.dir)
    modality = plugins.load("modalities", config.modality)
    datasets.disable_progress_bars()  # one bar a run is enough
    disable_progress_bar()
    accelerator = Accelerator(
        mixed_precision=config.train.mixed_precision,
        log_with=config.run.trackers or None,
        project_dir=str(folder),
        # a dropped layer has no gradient
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.model.trunk.drops_layers)],
    )
    if config.run.overwrite:
        with accelerator.main_process_first():
            clear(folder)
    bring_tokenizer(config, folder)
    with accelerator.main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        modality.prepare(config.data, config.frontend, folder, config.train.seed)
        check_folder(folder, config.as_dict(), config.run.resume)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
    report = samples.report.lines()
    accelerator.print("\n".join(report))
    if config.run.trackers:
        accelerator.init_trackers("d2v", config={key: str(value) for key, value in config.as_dict().items()})

    set_seed(config.train.seed)
    encoder = D2vModel(D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk))
    encoder.trunk.gradient_checkpointing = config.train.checkpoint_activations
    objective = plugins.load("d2v.objectives", config.objective.name).build(encoder, config.objective)
    if config.train.init_from and not found(folder / "checkpoints"):
        accelerator.print("\n".join(start_from(objective, config.train.init_from, config)))
    set_seed(config.train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    parameters = sum(p.numel() for p in encoder.parameters())
    accelerator.print(f"encoder: {parameters / 1e6:.2f} M parameters; {config.train.steps} steps of {config.train.batch_size} samples")
    bad_log = BadSamples(folder / "bad_samples.jsonl")
    batches = modality.batches(samples, config.data, config.frontend, config.train.batch_size, config.train.seed, bad_log)
    health = health_check(config, modality, samples, folder) if accelerator.is_main_process else None
    objective.check(batches(0, 0, config.train.batch_size)[0])  # of one sample
    if accelerator.is_main_process:  # only now: a command that failed until here does not bind the folder to its settings
        save_yaml(config.as_dict(), folder / "config.yaml")
    loop = Loop(objective, batches, train=config.train, run=config.run, accelerator=accelerator, health=health)
    verdict = loop()
    if accelerator.is_main_process:
        card = model_card(config, loop.history.records, verdict, report, parameters)
        export(objective, folder / "export", config, lambda place: modality.save_preprocessor(place, folder, config.data, config.frontend), card)
        advice = f" Advice: {verdict.advice}." if verdict.advice else ""
        print(f"verdict: {verdict.state}: {verdict.reason}.{advice}")
        print(f"encoder in {folder / 'export'}, curves in {folder / 'curves.png'}")
    accelerator.end_training()


def health_check(config: Config, modality, samples, folder: Path) -> HealthCheck:
    """On the training samples, or on evaluate.path where that names labelled data."""
    evaluate = config.evaluate
    if evaluate.path:
        data = dataclasses.replace(config.data, path=evaluate.path)
        samples = modality.Samples(data, config.frontend, split=evaluate.train_split, folder=folder)
    return HealthCheck(samples, limit=config.run.health_samples, label=evaluate.label, group=evaluate.group, batch_size=evaluate.batch_size)


if __name__ == "__main__":
    run_cli(main)
