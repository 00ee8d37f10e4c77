"""Fine-tuning from a config to an exported task model with its scores, predictions and pictures; what a script does is parse, build, call."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from omegaconf import OmegaConf

from d2v import files, plugins
from d2v.config.checks import check_keys
from d2v.config.loading import load_values, modality_of, save_yaml, typed
from d2v.config.schema import ModelConfig, OneModality, RunConfig
from d2v.files import replaced, written
from d2v.finetuning.objective import Supervised, TuneConfig
from d2v.finetuning.scores import table
from d2v.finetuning.validation import Validation, outputs
from d2v.interop.fidelity import FREE
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import TaskModel
from d2v.models.transformer import TrunkConfig
from d2v.protocols import Labelled, LabelledTask
from d2v.training.checkpoint import found
from d2v.training.curves import plot_confusion
from d2v.training.init_from import bring_preparation, read
from d2v.training.loop import Loop
from d2v.training.run_folder import BadSamples, check_apart, check_settings, new_run, record_trackers
from d2v.training.setup import checkpoint_activations, open_accelerator

SECTIONS = ("model", "task", "data", "train", "run")
RESULT_SECTIONS = SECTIONS[:-1]
RESULTS = "results.json"
FILES = ("config.yaml", "metrics.jsonl", "bad_steps.jsonl", "bad_samples.jsonl", "curves.png", RESULTS, "predictions_validation.csv",
         "predictions_test.csv", "confusion_validation.png", "confusion_test.png")  # fmt: skip
BATCH_SIZE = 64  # of scoring; changes no result


@dataclass
class FinetuneConfig(OneModality):
    """All settings of fine-tuning; `data` is the modality's for labelled data, `task` the task model's."""

    model: ModelConfig
    task: Any
    data: Any
    train: TuneConfig
    run: RunConfig


def read_values(argv: list[str]) -> dict:
    """The settings of `CONFIG [model=PATH] key=value ...` as plain dictionaries. ValueError: whatever is wrong with their form."""
    if not argv or "=" in argv[0]:
        raise ValueError(
            "usage: CONFIG [model=PATH] key=value ...; model= names an export of pretraining, without it training is from scratch"
        )
    arguments = [
        f"train.init_from={arg.removeprefix('model=')}" if arg.startswith("model=") else arg for arg in argv[1:]
    ]
    values = load_values(argv[0], arguments)
    check_keys(values, SECTIONS, "", argv[0])
    return values


def load(argv: list[str], modality: str = "") -> tuple[FinetuneConfig, LabelledTask]:
    """The config of `CONFIG [model=PATH] key=value ...`, and the kind of labelled data that it asks for.

    ValueError: whatever is wrong with it, or another modality than `modality`, where that is given.
    """
    values = read_values(argv)
    name = modality_of(values, argv[0])
    if modality and name != modality:
        raise ValueError(f"{argv[0]} is a config for {name}; this script fine-tunes {modality}")
    package = plugins.load("d2v.modalities", name)
    task = package.labelled_task(values.get("data") or {})
    parts = {
        "model": {"frontends": {name: package.FrontendConfig}, "trunk": TrunkConfig},
        "data": task.config,  # first: its keys say whether classes or letters were meant
        "task": task.model.task_class,
        "train": TuneConfig,
        "run": RunConfig,
    }
    built = typed(parts, OmegaConf.create(values), "", argv[0])
    config = FinetuneConfig(**{**built, "model": ModelConfig(**built["model"])})
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    for setting in ("health_every", "health_samples", "stop_on_collapse", "probe"):
        if getattr(config.run, setting) != getattr(RunConfig(), setting):
            raise ValueError(f"run.{setting} is {getattr(config.run, setting)}; it is a setting of pretraining")
    return config, task


def finetune(config: FinetuneConfig, task: LabelledTask) -> dict[str, dict[str, float]]:
    """One run, from files to export/; the scores by split. ValueError: whatever the user can mend."""
    folder, train = Path(config.run.dir), config.train
    check_apart(
        folder,
        {"data.path": config.data.path, "model": train.init_from, "data.tokenizer": vars(config.data).get("tokenizer")},
    )
    accelerator = open_accelerator(train, config.run, unused=True)  # what is frozen, dropped layers, the mask token
    with new_run(folder, FILES, overwrite=config.run.overwrite) if accelerator.is_main_process else nullcontext():
        loop, data = assemble(config, task, accelerator)
    loop()
    scores = {}
    if accelerator.is_main_process:
        if not (folder / "export").exists():  # nothing chose a model: no validation split, or no score that is a number
            _export(loop.objective.result, folder / "export", config, data)
        scores = report(folder, task.model, data, loop.progress.step, accelerator.device)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return scores


def assemble(config: FinetuneConfig, task: LabelledTask, accelerator: Accelerator) -> tuple[Loop, Labelled]:
    """The loop of a run and its data; all that can be wrong with the settings or the files shows here. ValueError: it is."""
    folder, train = Path(config.run.dir), config.train
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            make_room(folder)
        encoder = adopt(config, folder, accelerator.print)
        bring_preparation(config, folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = task.open(config, folder, BadSamples(folder / "bad_samples.jsonl"), accelerator.print)
        check_settings(folder, config.as_dict(), config.run.resume, RESULT_SECTIONS)
    if config.run.trackers:
        before = files.files_in(folder)
        accelerator.init_trackers("d2v", config={key: str(value) for key, value in config.as_dict().items()})
        record_trackers(folder, before)
    set_seed(train.seed)
    model = build_model(config, task.model, data.head, encoder)
    objective = Supervised(model, train)
    validation = _validation(config, objective, data, folder)
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    if (
        accelerator.is_main_process
    ):  # only now: a command that failed until here does not bind the folder to its settings
        save_yaml(config.as_dict(), folder / "config.yaml")
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    accelerator.print(
        f"from {train.init_from or 'scratch'}: {trained / 1e6:.2f} M trained parameters; {train.steps} steps of {train.batch_size} samples"
    )
    return Loop(
        objective, data.batches, train=train, run=config.run, accelerator=accelerator, validation=validation
    ), data


def make_room(folder: Path) -> None:
    """A run that is there may be gone on from. ValueError: it is finished."""
    if (folder / RESULTS).exists():
        raise ValueError(f"{folder} holds a finished run; choose another run.dir, or run.overwrite=true to replace it")
    if not (folder / "config.yaml").is_file():  # a command that failed may have left the tokenizer of another encoder
        files.remove_folder(folder / "tokenizer")


def adopt(config: FinetuneConfig, folder: Path, say: Callable[[str], None]) -> D2vModel | None:
    """The encoder to start from, whose architecture becomes the config's; its rates of dropout stay the config's. None: from scratch, or resuming.

    ValueError: there is none at train.init_from, or it reads another modality.
    """
    name, saved = config.modality, folder / "config.yaml"
    if not config.train.init_from:
        return None
    resuming, encoder = bool(found(folder / "checkpoints")) and saved.is_file(), None
    if resuming:  # the run has its own copy, and what it started from may be gone
        model = OmegaConf.to_container(OmegaConf.load(saved).model)
        assert isinstance(model, dict)
        frontends, trunk = model["frontends"], model["trunk"]
    else:
        encoder = read(Path(config.train.init_from), "model")[0]
        frontends, trunk = encoder.config.frontends, encoder.config.trunk
    if name not in frontends:
        raise ValueError(f"model={config.train.init_from} reads {', '.join(frontends)}; this script fine-tunes {name}")
    changed = []
    for where, ours, theirs in (
        (f"frontends.{name}", config.frontend, frontends[name]),
        ("trunk", config.model.trunk, trunk),
    ):
        for field, value in theirs.items():
            if not any(word in field for word in FREE) and vars(ours)[field] != value:
                changed.append(f"{where}.{field}={value} instead of {vars(ours)[field]}")
                setattr(ours, field, value)
    if changed:
        say(f"the model of {config.train.init_from}: {', '.join(changed)}")
    return encoder


def build_model(
    config: FinetuneConfig, model_class: type[TaskModel], head: dict[str, Any], encoder: D2vModel | None
) -> TaskModel:
    """A task model with a new head, its encoder as it was initialised or that of `encoder`."""
    made = D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk, task=config.task, **head)
    model = model_class(made)
    checkpoint_activations(model.encoder, config.train.checkpoint_activations)
    if encoder is not None:
        own = set(model.encoder.state_dict())
        model.encoder.load_state_dict(
            {name: value for name, value in encoder.state_dict().items() if name in own}
        )  # all but a final norm
    return model


def _validation(config: FinetuneConfig, objective: Supervised, data: Labelled, folder: Path) -> Validation | None:
    """None without a validation split. ValueError: settings that need one."""
    if "validation" not in data.splits:
        for name in ("metric", "patience", "validate_every"):
            if getattr(config.train, name):
                raise ValueError(
                    f"train.{name} is {getattr(config.train, name)!r}, but there is no validation split: see data.validation_split"
                )
        return None
    return Validation(
        objective,
        data.splits["validation"],
        data.score,
        metric=config.train.metric or data.metric,
        batch_size=BATCH_SIZE,
        keep=lambda model: _export(model, folder / "export", config, data),
    )


def _export(model: TaskModel, folder: Path, config: FinetuneConfig, data: Labelled) -> None:
    with replaced(folder) as draft:
        model.save_pretrained(draft)
        data.save_preprocessor(draft)
        save_yaml(config.as_dict(), draft / "finetuning.yaml")


def report(
    folder: Path, model_class: type[TaskModel], data: Labelled, step: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Scores of the exported model by split, printed; beside them predictions as csv and, for classes, the confusion matrix as PNG."""
    model = model_class.from_pretrained(folder / "export").to(device)
    scores = {}
    for name, split in data.splits.items():
        logits = outputs(model, split, BATCH_SIZE, device)
        rows = data.rows(split, logits)
        scores[name] = data.score(logits, split.labels) | (data.row_scores(rows) if data.row_scores else {})
        _write_csv(folder / f"predictions_{name}.csv", rows)
        if data.classes:
            predicted = np.array([x.argmax() for x in logits])
            plot_confusion(np.asarray(split.labels), predicted, data.classes, folder / f"confusion_{name}.png")
    with written(folder / RESULTS) as draft:
        draft.write_text(json.dumps({"steps": step, "scores": scores}, indent=1) + "\n")
    for name, values in scores.items():
        print(f"{name}: {', '.join(f'{score} {value:.4f}' for score, value in values.items())}")
    print(f"model in {folder / 'export'}; runs beside this one:\n{table(folder.parent, RESULTS)}")
    return scores


def _write_csv(path: Path, rows: list[dict]) -> None:
    with written(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
