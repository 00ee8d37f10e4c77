"""One run of fine-tuning, from a config to an exported task model with its scores, predictions and pictures."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from d2v import files, plugins
from d2v.config.loading import save_yaml
from d2v.finetuning import outcome
from d2v.finetuning.config import RESULT_SECTIONS, FinetuneConfig
from d2v.finetuning.model import adopt, bring_head, build_model
from d2v.finetuning.objective import Supervised
from d2v.finetuning.page import write_finetuned
from d2v.finetuning.validation import BATCH_SIZE, Validation, is_scored
from d2v.models.task_models import TaskModel
from d2v.protocols import Labelled, LabelledTask
from d2v.reading import Reader
from d2v.shown import printable
from d2v.training.forecast import where
from d2v.training.inherited import resumes
from d2v.training.init_from import bring_preparation
from d2v.training.length import bind, check_length
from d2v.training.loop import Loop
from d2v.training.run_folder import LOOP_FILES, PAGE, BadSamples, check_apart, check_settings, check_shared, new_run
from d2v.training.same_data import DataCheck
from d2v.training.setup import dry_folder, open_accelerator, open_trackers
from d2v.training.sizes import check_memory


def finetune(config: FinetuneConfig, task: LabelledTask) -> dict[str, dict[str, float]]:
    """One run, from files to export/; the scores by split. ValueError: whatever the user can mend."""
    folder, train = Path(config.run.dir), config.train
    prepared = plugins.load("d2v.modalities", config.modality).PREPARED
    sources = {f"data.{name}": getattr(config.data, name) for name in ("path", *prepared)}
    check_apart(folder, sources | {"model": train.init_from})
    accelerator = open_accelerator(train, config.run, unused=True)  # what is frozen, dropped layers, the mask token
    accelerator.print(where(accelerator))
    if task.said:
        accelerator.print(printable(task.said))
    with dry_folder(config.run, accelerator):
        scores = _run(config, task, prepared, accelerator)
    accelerator.end_training()
    return scores


def _run(
    config: FinetuneConfig, task: LabelledTask, prepared: Sequence[str], accelerator: Accelerator
) -> dict[str, dict[str, float]]:
    """Trains in run.dir, which other processes of the same command read, and the main process writes."""
    folder, scores = Path(config.run.dir), {}
    with files.locked(folder) if accelerator.is_main_process else nullcontext():
        check_shared(folder, accelerator)
        new = new_run(folder, (*LOOP_FILES, *outcome.FILES), prepared, overwrite=config.run.overwrite)
        with new if accelerator.is_main_process else nullcontext():
            loop, data = assemble(config, task, prepared, accelerator)
        loop()
        objective: Any = loop.whole()
        if loop.was_reported and (folder / outcome.RESULTS).is_file():
            scores = outcome.kept_scores(folder)
            if accelerator.is_main_process:
                print(f"{folder} holds this run, finished: nothing is changed, and its scores are those of then")
                outcome.say_scores(folder, scores)
        elif objective is not None and accelerator.is_main_process and not config.run.dry:
            # Nothing chose a model where there is no validation split, or no score that is a number.
            chosen = int(dict(objective.named_buffers()).get("best_step", 0))
            if not chosen or "config.json" not in files.recorded(folder / "export"):
                _export(objective.result, folder / "export", config, data)
            reader, device = _reader(config, folder), accelerator.device
            scores = outcome.write_outcome(folder, task.model, data, loop.progress.step, reader, device)
            write_finetuned(folder, config, data, scores, task.model.__name__, loop.progress.step)
        accelerator.wait_for_everyone()
    return scores


def assemble(
    config: FinetuneConfig, task: LabelledTask, prepared: Sequence[str], accelerator: Accelerator
) -> tuple[Loop, Labelled]:
    """The loop of a run and its data; all that can be wrong with the settings or the files shows here.

    ValueError: it is.
    """
    folder, train = Path(config.run.dir), config.train
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            make_room(folder, prepared)
        encoder = adopt(config, folder, accelerator.print)
        bring_preparation(config, folder, accelerator.print, "model")
        folder.mkdir(parents=True, exist_ok=True)
        data = task.open(config, folder, BadSamples(folder / "bad_samples.jsonl"), accelerator.print)
        check_settings(folder, config, config.run.resume, RESULT_SECTIONS)
    check_memory(
        config, lambda config: Supervised(build_model(config, task.model, data.head, None), train), accelerator.device
    )
    same_data = DataCheck(accelerator, folder, config.run)
    same_data(config.data.path, [split for name, split in data.splits.items() if name != "test"] + [data.training])
    open_trackers(accelerator, config)
    set_seed(train.seed)
    model = build_model(config, task.model, data.head, encoder)
    if encoder is not None:
        bring_head(model, train.init_from, accelerator.print)
    elif not resumes(folder):
        model.encoder.begin_with(config.modality, data.training.samples)
    objective = Supervised(model, train)
    objective.seed = train.seed
    validation = _validation(config, objective, data, folder)
    others = {} if validation is None else {"when the validation split is scored (train.validate_every)": is_scored}
    check_length(folder, config, objective, setting="model", others=others)
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    accelerator.print(
        f"from {train.init_from or 'scratch'}: {trained / 1e6:.2f} M trained parameters; "
        f"{train.steps} steps of {train.batch_size} samples"
    )
    loop = Loop(objective, data.batches, train=train, run=config.run, accelerator=accelerator, validation=validation)
    if accelerator.is_main_process:
        # Only now: a command that failed until here does not bind the folder to its settings.
        bind(folder, config, (outcome.RESULTS, PAGE))
        same_data.save()
    return loop, data


def make_room(folder: Path, prepared: Sequence[str]) -> None:
    """Removes what a command that failed may have left, prepared for another encoder."""
    if not (folder / "config.yaml").is_file():
        for name in prepared:
            files.remove_folder(folder / name)


def _validation(config: FinetuneConfig, objective: Supervised, data: Labelled, folder: Path) -> Validation | None:
    """None without a validation split. ValueError: settings that need one."""
    if "validation" not in data.splits:
        for name in ("metric", "patience", "validate_every"):
            value = getattr(config.train, name)
            if value:
                raise ValueError(
                    f"train.{name} is {value!r}, but there is no validation split: see data.validation_split"
                )
        return None
    validation = Validation(
        objective,
        data.splits["validation"],
        data.score,
        metric=config.train.metric or data.metric,
        batch_size=BATCH_SIZE,
        reader=_reader(config, folder),
        keep=lambda model: _export(model, folder / "export", config, data),
    )
    if config.train.metric:
        validation.check_metric()
    return validation


def _reader(config: FinetuneConfig, folder: Path) -> Reader:
    return Reader(config.data.max_bad_share, BadSamples(folder / "bad_samples.jsonl"))


def _export(model: TaskModel, folder: Path, config: FinetuneConfig, data: Labelled) -> None:
    with files.replaced(folder) as draft:
        model.save_pretrained(draft)
        data.save_preprocessor(draft)
        save_yaml(config.as_dict(), draft / "finetuning.yaml")
