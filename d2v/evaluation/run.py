"""An evaluation of one or several models: the table, the reports, and the file that holds both."""

import dataclasses
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from d2v import plugins
from d2v.config.given import COMMAND_LINE
from d2v.config.schema import Config
from d2v.evaluation.config import AUTO, LABEL, EvaluateConfig
from d2v.evaluation.load_encoder import Opened, open_model
from d2v.evaluation.report import Finding, Subject, check_reports, make_reports
from d2v.evaluation.scoring import evaluate_encoder, evaluate_raw
from d2v.evaluation.splits import EvaluationSplit, label_splits, labelled_data
from d2v.evaluation.table import Row, average, markdown_table
from d2v.files import check_folder, check_new, record_results, written
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.protocols import NoSplitError, Samples, asked_by
from d2v.reading import Reader, named
from d2v.split_names import share_rows, uses
from d2v.training.weights import folder_of_model, home, is_checkpoint


class Splits(NamedTuple):
    """What a model is scored on, as it reads it."""

    train: EvaluationSplit
    test: EvaluationSplit | None
    unread: dict[str, str]  # reasons by id
    settings: EvaluateConfig  # with what stands for "auto", and without a label that the data has not
    notes: list[str]  # which of these were settled, and how

    def report_lines(self) -> list[str]:
        """What is said of the data."""
        lines = []
        for split in (self.train, self.test):
            if split is not None:
                lines += [*split.samples.report.lines(), *split.notes]
        if self.unread:
            lines.append(f"left out, cannot be read: {len(self.unread)}: {named(self.unread)}")
        return lines + self.notes


def evaluate(config: Config, models: list[str], *, config_path: str, in_run: bool) -> dict[str, Any]:
    """Scores models, prints what comes out, writes it to a JSON file and returns it.

    `in_run`: into run.dir, else beside the first model. ValueError: whatever the user can mend.
    """
    if config.given.get("data.split") == COMMAND_LINE:
        raise ValueError(
            f"data.split={config.data.split}: `d2v evaluate` does not read it; evaluate.train_split is what neighbours "
            "and probes learn from, evaluate.test_split what is scored"
        )
    if config.evaluate.group and not config.evaluate.label and config.given.get("evaluate.group") == COMMAND_LINE:
        raise ValueError(
            f"evaluate.group={config.evaluate.group}: evaluate.label is '', and groups are kept apart in scores by "
            "labels alone: leave it out"
        )
    target = result_file(models[0], config, in_run)
    check_new(target, config.run.overwrite, "run.dir=FOLDER writes elsewhere, of other data say")
    check_folder(target.with_suffix(""))
    _check_reports(config)
    evaluation = Evaluation(config, target)
    evaluation.open(models)
    for path in models:
        start = time.perf_counter()
        evaluation.add(path)
        print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)
    evaluation.show()
    result = {"models": models, "config": config_path, **evaluation.as_dict()}
    record_results([target])
    with written(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")
    return result


class Evaluation:
    """Rows and findings of the models that were added so far."""

    def __init__(self, config: Config, target: Path):
        self.config, self.settings, self.folder = config, config.evaluate, target.with_suffix("")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rows: list[Row] = []
        self.findings: dict[str, dict[str, Finding]] = {}  # by the model's path and the report's name
        self.architectures: list[dict] = []  # whose random inits are in the table
        self.splits: Splits | None = None  # the last model's
        self.opened: dict[str, Opened] = {}  # by the model's path

    def open(self, paths: list[str]) -> None:
        """Opens the models, and data as the first reads it. ValueError: what was asked for cannot be had of them."""
        for path in paths:
            self.opened[path] = open_model(self.config, path, print)
        self.splits = splits = open_splits(self.opened[paths[0]], self.config)
        print(*splits.report_lines(), sep="\n", flush=True)
        for path, opened in self.opened.items():
            subject = Subject(path, {path: opened.encoder}, splits.train, splits.test, splits.settings, self.folder)
            check_reports(subject, splits.settings.reports)
            if path == paths[0]:
                subject.check_layer()

    def add(self, path: str) -> None:
        """Scores a model that is opened, and makes its reports."""
        first = not self.findings
        if not first:
            self.splits = open_splits(self.opened[path], self.config)
        assert self.splits is not None
        splits = self.splits
        self.settings = splits.settings
        encoder = self.opened[path].encoder.to(self.device)
        if self.settings.label:
            self.rows += self._baselines(encoder.config, splits)
            self.rows += evaluate_encoder(path, encoder, splits.train, splits.test, self.settings, self.device)
        folder = self.folder if first else self.folder / str(len(self.findings) + 1)
        subject = Subject(path, {path: encoder}, splits.train, splits.test, self.settings, folder, self.device)
        if self.settings.reports and self.settings.random_seeds:
            subject.encoders["random init"] = self._random_init(encoder.config, splits, seed=0)[0]
        self.findings[path] = make_reports(subject, self.settings.reports)

    def _baselines(self, architecture: D2vConfig, splits: Splits) -> list[Row]:
        """The raw input before the first model; random inits before the first of each architecture."""
        rows = []
        if self.settings.raw and not self.architectures:
            rows.append(evaluate_raw(splits.train, splits.test, self.settings, self.device))
        shape = {"frontends": architecture.frontends, "trunk": architecture.trunk}
        if shape in self.architectures:
            return rows
        self.architectures.append(shape)
        runs, how = [], ""
        for seed in range(self.settings.random_seeds):
            encoder, how = self._random_init(architecture, splits, seed)
            runs.append(evaluate_encoder("random init", encoder, splits.train, splits.test, self.settings, self.device))
        return rows + average(f"random init ({len(runs)} seeds){how}", runs) if runs else rows

    def _random_init(self, architecture: D2vConfig, splits: Splits, seed: int) -> tuple[D2vModel, str]:
        """An untrained encoder, and what of it came from the texts or files that k-NN and probes learn from."""
        torch.manual_seed(seed)
        encoder = D2vModel(architecture)
        how = encoder.begin_with(self.config.modality, splits.train.samples)
        return encoder.to(self.device), f", {how}" if how else ""

    def show(self) -> None:
        """Prints the table and what the reports say."""
        if self.rows:
            print(f"\n{markdown_table(self.rows)}\n\n{self._sizes()} ± is the spread over random inits.")
        lines = []
        for findings in self.findings.values():
            for finding in findings.values():
                lines += finding.lines
        print(*lines, sep="\n")

    def _sizes(self) -> str:
        """Of how many samples the accuracies are."""
        assert self.splits is not None
        said, size = f"Percent of {self.num_scored} samples", self.num_scored
        if self.splits.test is not None and self.splits.train.groups is not None:
            size = min(size, len(self.splits.train.indices))
            said += f", 'other {self.config.evaluate.group}' of {len(self.splits.train.indices)} of the training split"
        return f"{said}; one standard error is at most {50 / size**0.5:.1f} points."

    @property
    def num_scored(self) -> int:
        """Samples that accuracies are over."""
        assert self.splits is not None
        return len((self.splits.test or self.splits.train).indices)

    def as_dict(self) -> dict[str, Any]:
        """For the result's file."""
        assert self.splits is not None
        train, test = self.splits.train, self.splits.test
        reports = {}
        for path, findings in self.findings.items():
            reports[path] = {name: finding.numbers for name, finding in findings.items()}
        return {
            "evaluate": dataclasses.asdict(self.settings),
            "data": str(_labelled(self.config)),
            "train_samples": len(train.indices),
            "test_samples": 0 if test is None else len(test.indices),
            "rows": [row._asdict() for row in self.rows],
            "reports": reports,
        }


def _check_reports(config: Config) -> None:
    """ValueError: an unknown report, or nothing at all to be done."""
    for name in config.evaluate.reports:
        plugins.load("d2v.evaluation.reports", name)
    if not config.evaluate.label and not config.evaluate.reports:
        raise ValueError("evaluate.label is '' and evaluate.reports names no report: there is nothing to score")


def _labelled(config: Config) -> Any:
    """Where the labelled data is."""
    return config.evaluate.path or config.data.path


def open_splits(opened: Opened, config: Config) -> Splits:
    """Samples as this model reads them: with its own frontend's settings and tokenizer, as it was fed."""
    modality, settings = plugins.load("d2v.modalities", config.modality), config.evaluate
    data = labelled_data(opened.data, _labelled(config), config.evaluate.label)
    if not data.path:
        raise ValueError("no data: give data.path=... or evaluate.path=...")

    def open_samples(split: str, setting: str):
        with asked_by(setting, "evaluate.path" if settings.path else "data.path"):
            samples = modality.Samples(data, opened.frontend, split=split, folder=opened.folder)
        samples.report.check(data.max_bad_share, f"split {split!r} of {data.path}")
        return samples

    train, test, notes = open_samples(settings.train_split, "evaluate.train_split"), None, []
    if settings.test_split == AUTO:
        with suppress(NoSplitError):
            test = open_samples("test", "evaluate.test_split")
        settings = dataclasses.replace(settings, test_split="" if test is None else "test")
    elif settings.test_split:
        test = open_samples(settings.test_split, "evaluate.test_split")
        if share_rows(settings.train_split, settings.test_split, train.report.splits):
            raise ValueError(
                f"evaluate.test_split is {settings.test_split!r}, which holds samples that evaluate.train_split, "
                f"{settings.train_split!r}, holds too: they would find themselves; choose others of one, or leave "
                "evaluate.test_split empty, to score within train"
            )
    if settings.label == LABEL and not _has_column(train, LABEL):
        notes.append("there is no column 'label': the report geometry, which needs no labels, is made")
        settings = dataclasses.replace(settings, label="", reports=settings.reports or ["geometry"])
    elif test is not None:
        taken = {settings.train_split: "is what k-NN and probes learn from", settings.test_split: "is scored"}
        notes.append(uses(train.report.splits, taken))
    elif config.evaluate.test_split == AUTO:
        notes.append("there is no split 'test': scored within train, where neighbours leave one out")
    reader = Reader(data.max_bad_share)

    def read(split: EvaluationSplit) -> EvaluationSplit:
        return split.some(reader.readable(split.samples, split.indices, settings.batch_size))

    # Found before the first row of the table, so that all rows are of the same samples.
    near, far = label_splits(train, test, settings)
    return Splits(read(near), None if far is None else read(far), reader.bad, settings, notes)


def _has_column(samples: Samples, name: str) -> bool:
    try:
        samples.column(name)
    except ValueError:
        return False
    return True


def result_file(model: str, config: Config, in_run: bool) -> Path:
    """Where the result goes: evaluation/ in run.dir, beside the model, or in this folder for a name on the Hub.

    For the side that lies in an export it is beside the export.
    """
    path = folder_of_model(Path(model))
    called = path.name if path.name not in ("", "..") else path.resolve().name
    place = path.resolve().parent if path.exists() else Path()
    if (place / "pretraining.yaml").is_file():
        place, called = place.parent, f"{place.name}_{called}"
    name = (
        "_".join(
            [
                *([config.part] if config.part else []),
                called,
                f"layer-{config.evaluate.layer}",
                *config.evaluate.reports,
            ]
        )
        + ".json"
    )
    if in_run:
        return Path(config.run.dir) / "evaluation" / name
    if is_checkpoint(path):
        return home(path) / "evaluation" / name
    return place / "evaluation" / name
