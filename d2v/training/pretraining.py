"""One run of pretraining, from a config to an exported encoder; what a script does is parse, build, call."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from d2v import cache, files, plugins
from d2v.config.schema import Config
from d2v.config.written import dumped
from d2v.evaluation.config import AUTO
from d2v.evaluation.splits import labelled_data
from d2v.objectives.common.objective import Objective
from d2v.protocols import Batches, Report, ScoredSplit, asked_by
from d2v.reading import Limit, Reader
from d2v.shown import printable
from d2v.split_names import share_rows, uses
from d2v.training.export import export, measured, model_card
from d2v.training.first_look import look_first
from d2v.training.forecast import where
from d2v.training.health import HealthCheck
from d2v.training.inherited import resumes
from d2v.training.init_from import adopt, bring_preparation, start_from
from d2v.training.length import bind, check_length
from d2v.training.loop import Loop
from d2v.training.maps import token_maps
from d2v.training.online_probe import OnlineProbe
from d2v.training.page import Shown, Summary, write_page
from d2v.training.run_folder import LOOP_FILES, BadSamples, check_apart, check_settings, check_shared, new_run
from d2v.training.same_data import DataCheck
from d2v.training.setup import build_objective, dry_folder, open_accelerator, open_trackers
from d2v.training.sizes import check_batch, check_memory
from d2v.training.verdict import Verdict, better

FILES = (*LOOP_FILES, "spectrum.png", "report.html")


def pretrain(config: Config) -> None:
    """One run, from files to export/. ValueError: whatever the user can mend."""
    if not config.run.dir:
        raise ValueError("run.dir is required: the folder that this run writes to, e.g. run.dir=runs/first")
    folder = Path(config.run.dir)
    modality = plugins.load("d2v.modalities", config.modality)
    check_apart(folder, sources(config, modality))
    with cache.one_look():
        look_first(config, modality)
        accelerator = open_accelerator(config.train, config.run, unused=config.model.trunk.drops_layers)
        accelerator.print(where(accelerator))
        with dry_folder(config.run, accelerator):
            _run(config, modality, accelerator)
    accelerator.end_training()


def _run(config: Config, modality, accelerator: Accelerator) -> None:
    """Trains in run.dir, which other processes of the same command read, and the main process writes."""
    folder = Path(config.run.dir)
    with files.locked(folder) if accelerator.is_main_process else nullcontext():
        check_shared(folder, accelerator)
        new = new_run(folder, FILES, modality.PREPARED, overwrite=config.run.overwrite)
        with new if accelerator.is_main_process else nullcontext():
            loop, report = assemble(config, modality, accelerator)
        verdict, objective = loop(), loop.whole()
        if objective is None or not accelerator.is_main_process or config.run.dry:
            return
        if loop.was_reported:
            print(f"{folder} holds this run, finished: nothing is changed")
        else:
            _write_results(config, modality, loop, objective, verdict, report)
        say_how_it_stands(folder, verdict)


def sources(config: Config, modality) -> dict:
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
        source = None
        if train.init_from:
            source = adopt(
                config, train.init_from, folder, accelerator.print, setting="train.init_from", resizable=False
            )
        bring_preparation(config, folder, accelerator.print)
        folder.mkdir(parents=True, exist_ok=True)
        modality.prepare(config.data, config.frontend, folder, train.seed)
        check_settings(folder, config, run.resume)
        samples = modality.Samples(config.data, config.frontend, split=config.data.split, folder=folder)
    report = [*samples.report.lines(), uses_of_splits(config, samples.report.splits)]
    accelerator.print("\n".join([*report, *advice(samples.report)]))
    check_memory(config, lambda config: build_objective(config, len(samples)), accelerator.device)
    numbers = vars(config.objective).get("num_samples") is not None
    same_data = DataCheck(accelerator, folder, run, remembers=config.objective.name if numbers else "")
    same_data(config.data.path, [ScoredSplit(samples, range(len(samples)), ())])
    open_trackers(accelerator, config)

    set_seed(train.seed)
    begins = source is None and not resumes(folder)
    objective = build_objective(config, len(samples), samples if begins else None)
    check_length(folder, config, objective, setting="train.init_from")
    if source is not None:
        accelerator.print("\n".join(start_from(objective, train.init_from, config, source)))
    set_seed(train.seed, device_specific=True)  # from here on randomness is dropout's, and differs between processes
    size = f"{num_parameters(objective) / 1e6:.2f} M parameters"
    accelerator.print(f"encoder: {size}; {train.steps} steps of {train.samples()}")

    bad_log = BadSamples(folder / "bad_samples.jsonl")
    limited = Limit(bad_log, config.data.max_bad_share, len(samples))
    batches = modality.batches(samples, config.data, config.frontend, train.batch_size, train.seed, limited)
    health = probe = None
    if accelerator.is_main_process:
        reader = Reader(config.data.max_bad_share, bad_log)
        health = health_check(config, modality, samples, folder, reader)
        print(printable(health.said))
        probe = online_probe(config, modality, folder, reader) if run.probe.path else None
    check_method(objective, batches, config, same_data, accelerator)
    loop = Loop(objective, batches, train=train, run=run, accelerator=accelerator, health=health, probe=probe)
    if accelerator.is_main_process:
        # Only now: a command that failed until here does not bind the folder to its settings.
        bind(folder, config)
        same_data.save()
    return loop, report


def check_method(
    method: Objective, batches: Batches, config: Config, same_data: DataCheck, accelerator: Accelerator
) -> None:
    """ValueError: the method cannot be trained on such batches or such data."""
    views = [view.to("cpu") for view in batches(0, 0, config.train.batch_size)[0]]  # of one sample
    method.check(views)
    method.check_masks(views)
    same_data.ask(method.check_data)
    check_batch(config, views, accelerator.num_processes * config.train.accumulate, accelerator.device)


def uses_of_splits(config: Config, splits: Sequence[str]) -> str:
    """What becomes of each split of data.path, in a line."""
    taken, evaluate = {config.data.split: "is trained on"}, config.evaluate
    scored = "test" if evaluate.test_split == AUTO else evaluate.test_split
    if scored and not evaluate.path:
        taken.setdefault(scored, "is scored by `d2v evaluate`")
    return uses(splits, taken)


def advice(report: Report) -> list[str]:
    """The settings that would help to read samples of their sizes, in a line; none: all is well."""
    return [f"hint: {report.advice}"] if report.advice else []


def num_parameters(objective: Objective) -> int:
    """Of the student's encoder."""
    return sum(p.numel() for p in objective.student["encoder"].parameters())


def health_check(config: Config, modality, samples, folder: Path, reader: Reader) -> HealthCheck:
    """On the training samples, or on evaluate.path where that names labelled data."""
    evaluate = config.evaluate
    if evaluate.path:
        data = labelled_data(config.data, evaluate.path, evaluate.label)
        try:
            with asked_by("evaluate.train_split", "evaluate.path"):
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
        reader=reader,
    )


def online_probe(config: Config, modality, folder: Path, reader: Reader) -> OnlineProbe:
    """k-NN on run.probe.path. ValueError: no usable samples or labels there, or samples that would find themselves."""
    probe = config.run.probe
    data = labelled_data(config.data, probe.path, probe.label)

    def samples(setting: str):
        with asked_by(f"run.probe.{setting}", "run.probe.path"):
            return modality.Samples(data, config.frontend, split=getattr(probe, setting), folder=folder)

    test = samples("test_split") if probe.test_split else None
    train = samples("train_split")
    if test is not None and share_rows(probe.train_split, probe.test_split, train.report.splits):
        raise ValueError(
            f"run.probe.test_split is {probe.test_split!r}, which holds samples that run.probe.train_split, "
            f"{probe.train_split!r}, holds too: choose others of one, or leave it empty, to score within train"
        )
    return OnlineProbe(train, test, probe, reader)


def _write_results(
    config: Config, modality, loop: Loop, objective: Objective, verdict: Verdict, report: list[str]
) -> None:
    """Exports the encoder, and writes the page."""
    folder = Path(config.run.dir)

    def save_preprocessor(place: Path) -> None:
        modality.save_preprocessor(place, folder, config.data, config.frontend)

    best = better(loop.history.records) if len(objective.teacher) else "student"
    card = model_card(config, loop.history.records, verdict, report, num_parameters(objective))
    export(objective, folder / "export", config, save_preprocessor, card, best)
    _write_page(config, loop, objective, verdict, report)


def say_how_it_stands(folder: Path, verdict: Verdict) -> None:
    """The verdict, and where what was written is."""
    advice = f" Advice: {verdict.advice}." if verdict.advice else ""
    print(f"verdict: {verdict.state}: {verdict.reason}.{advice}")
    other = next((name for name in ("student", "teacher") if (folder / "export" / name).is_dir()), "")
    which = f" (the {'teacher' if other == 'student' else 'student'}; the {other} is in {folder / 'export' / other})"
    print(f"encoder in {folder / 'export'}{which if other else ''}")
    curves = ", ".join(str(path) for path in sorted(folder.glob("curves*.png")))
    print(f"report in {folder / 'report.html'}, curves in {curves}")


def summary_of(
    title: str, settings: dict, loop: Loop, verdict: Verdict, report: list[str], commands: list[str]
) -> Summary:
    """What the page of a run of pretraining says, of one modality or a joint one."""
    return Summary(
        title=title,
        state=verdict.state,
        reason=verdict.reason,
        advice=verdict.advice,
        headings=("measured", "random init", "end"),
        numbers=measured(loop.history.records),
        report=report,
        settings=dumped(settings),
        commands=commands,
    )


def _write_page(config: Config, loop: Loop, objective: Objective, verdict: Verdict, report: list[str]) -> None:
    """The run as a page for a person."""
    folder, health = Path(config.run.dir), loop.health
    if health is None:
        return
    steps = f"{loop.progress.step} of {config.train.steps} steps"
    data = config.data.path if isinstance(config.data.path, str) else "..."
    title = f"{config.objective.name} on {config.modality}: {folder.name}, {steps}"
    commands = [
        f"d2v embed {folder}/config.yaml model={folder}/export data.path={data} out=features.parquet",
        f"d2v evaluate {folder}/config.yaml model={folder}/export data.path={data}",
        f"d2v convert {folder}/export encoder.onnx",
    ]
    summary = summary_of(title, config.as_dict(), loop, verdict, report, commands)
    best = better(loop.history.records) if len(objective.teacher) else "student"
    encoder = objective.encoders[("student", "teacher").index(best)]
    maps = token_maps(encoder, config.modality, health, best) if loop.features else []
    write_page(folder, summary, [Shown(health.samples, health.read, loop.features.get("student"))], maps)
