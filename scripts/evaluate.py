"""Scores a pretrained encoder by k-NN and linear probe, beside random inits and the raw input, and makes reports that are asked for.

python scripts/evaluate.py configs/image/data2vec_tiny.yaml model=runs/photos/export data.path=photos/ [evaluate.layer=all ...]

`model` is a folder that `save_pretrained` wrote (a run's export/) or a name on the Hub; several are separated by commas. The table is
printed and written to evaluation/ beside the first model, or to evaluation/ in run.dir where that is given as an argument. Reports
(evaluate.reports=[knn_sweep,few_labels,...]: the files of d2v/evaluation/reports) leave their pictures in a folder of the same name.
"""

import dataclasses
import json
import time
from pathlib import Path

import torch

from d2v import plugins
from d2v.config.cli import run_cli, take_arguments
from d2v.config.loading import load_config
from d2v.config.schema import Config
from d2v.evaluation.load_encoder import open_encoder
from d2v.evaluation.report import Finding, Subject, make_reports
from d2v.evaluation.scoring import Row, Split, average, evaluate_encoder, evaluate_raw, label_splits, table
from d2v.files import check_folder, check_new, record, written
from d2v.models.encoder import D2vModel


def main(argv: list[str]) -> None:
    """`argv`: CONFIG model=PATH[,PATH...] [key=value ...]. ValueError: see each step."""
    given, rest = take_arguments(argv, "model")
    models = [path for path in given["model"].split(",") if path]
    if not rest or "=" in rest[0] or not models:
        raise ValueError("usage: evaluate.py CONFIG model=PATH[,PATH...] [key=value ...]")
    config = load_config(rest[0], rest[1:])
    target = _result_file(models[0], config, any(arg.startswith("run.dir=") for arg in rest))
    check_new(target, config.run.overwrite)
    check_folder(target.with_suffix(""))
    _check_reports(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    findings: dict[str, dict[str, Finding]] = {}
    seen: list[dict] = []  # architectures whose random inits are in the table
    train = test = None
    for number, path in enumerate(models, 1):
        start = time.perf_counter()
        encoder = open_encoder(path, config.modality)
        train, test = _open_splits(encoder, path, config)
        if number == 1:
            print(*train.samples.report.lines(), *(test.samples.report.lines() if test else []), sep="\n", flush=True)
        if config.evaluate.label:
            rows += _rows(path, _moved(encoder, device), train, test, config, seen, device)
        place = target.with_suffix("") / ("" if number == 1 else str(number))
        findings[path] = _reports(
            Subject(path, {path: _moved(encoder, device)}, train, test, config.evaluate, place, device)
        )
        print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)
    assert train is not None
    if rows:
        size = len(train.indices if test is None else test.indices)
        print(f"\n{table(rows)}\n")
        print(
            f"Percent of {size} samples; one standard error is at most {50 / size**0.5:.1f} points. ± is the spread over random inits."
        )
    print(*(line for found in findings.values() for finding in found.values() for line in finding.lines), sep="\n")
    result = {
        "models": models,
        "config": rest[0],
        "evaluate": dataclasses.asdict(config.evaluate),
        "data": str(_data(config).path),
    }
    result |= {
        "train_samples": len(train.indices),
        "test_samples": 0 if test is None else len(test.indices),
        "rows": [row._asdict() for row in rows],
    }
    result["reports"] = {
        path: {name: finding.numbers for name, finding in found.items()} for path, found in findings.items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    record(target.parent, [target.name])
    with written(target) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


def _check_reports(config: Config) -> None:
    """ValueError: an unknown report, or nothing at all to be done."""
    for name in config.evaluate.reports:
        plugins.load("d2v.evaluation.reports", name)
    if not config.evaluate.label and not config.evaluate.reports:
        raise ValueError("evaluate.label is '' and evaluate.reports names no report: there is nothing to score")


def _rows(
    path: str, encoder, train: Split, test: Split | None, config: Config, seen: list[dict], device: str
) -> list[Row]:
    """The table's rows of a model; before the first of its architecture those of random inits, before all the raw input's."""
    rows = [evaluate_raw(train, test, config.evaluate, device)] if config.evaluate.raw and not seen else []
    architecture = {"frontends": encoder.config.frontends, "trunk": encoder.config.trunk}
    if architecture not in seen:
        seen.append(architecture)
        rows += _random_inits(encoder.config, train, test, config, device) if config.evaluate.random_seeds else []
    return rows + evaluate_encoder(path, encoder, train, test, config.evaluate, device)


def _reports(subject: Subject) -> dict[str, Finding]:
    """Those that are asked for; beside the model a random init, unless none is wanted."""
    if subject.config.reports and subject.config.random_seeds:
        torch.manual_seed(0)
        subject.encoders["random init"] = _moved(D2vModel(subject.encoder.config), str(subject.device))
    return make_reports(subject, subject.config.reports)


def _data(config: Config):
    return dataclasses.replace(config.data, path=config.evaluate.path or config.data.path)


def _open_splits(encoder: D2vModel, path: str, config: Config) -> tuple[Split, Split | None]:
    """Samples as this model reads them: with its own frontend's settings and tokenizer."""
    modality, settings = plugins.load("d2v.modalities", config.modality), config.evaluate
    data, frontend = _data(config), modality.FrontendConfig(**encoder.config.frontends[config.modality])
    if not data.path:
        raise ValueError("no data: give data.path=... or evaluate.path=...")

    def samples(split: str):
        found = modality.Samples(data, frontend, split=split, folder=Path(path))
        found.report.check(data.max_bad_share, f"split {split!r} of {data.path}")
        return found

    return label_splits(
        samples(settings.train_split), samples(settings.test_split) if settings.test_split else None, settings
    )


def _random_inits(architecture, train: Split, test: Split | None, config: Config, device: str) -> list[Row]:
    runs = []
    for seed in range(config.evaluate.random_seeds):
        torch.manual_seed(seed)
        encoder = _moved(D2vModel(architecture), device)
        runs.append(evaluate_encoder("random init", encoder, train, test, config.evaluate, device))
    return average(f"random init ({len(runs)} seeds)", runs)


def _moved(encoder: torch.nn.Module, device: str) -> torch.nn.Module:
    return encoder.to(device)


def _result_file(model: str, config: Config, given: bool) -> Path:
    name = "_".join([Path(model).name, f"layer-{config.evaluate.layer}", *config.evaluate.reports]) + ".json"
    if given:
        return Path(config.run.dir) / "evaluation" / name
    return (Path(model).resolve().parent if Path(model).exists() else Path()) / "evaluation" / name


if __name__ == "__main__":
    run_cli(main)
