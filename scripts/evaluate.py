"""Scores a pretrained encoder by k-NN and linear probe, beside random inits and the raw input.

python scripts/evaluate.py configs/image/data2vec_tiny.yaml model=runs/photos/export data.path=photos/ [evaluate.layer=all ...]

`model` is a folder that `save_pretrained` wrote (a run's export/) or a name on the Hub; several are separated by commas. The table is
printed and written to evaluation/ beside the first model, or to evaluation/ in run.dir where that is given as an argument.
"""

import dataclasses
import json
import time
from pathlib import Path

import torch

from d2v import plugins
from d2v.config import Config, load_config, run_cli
from d2v.evaluation import Row, Split, average, evaluate_encoder, evaluate_raw, label_splits, table
from d2v.modeling import D2vModel
from d2v.opening import open_encoder


def main(argv: list[str]) -> None:
    """`argv`: CONFIG model=PATH[,PATH...] [key=value ...]. ValueError: see each step."""
    models = [path for arg in argv if arg.startswith("model=") for path in arg.removeprefix("model=").split(",") if path]
    rest = [arg for arg in argv if not arg.startswith("model=")]
    if not rest or "=" in rest[0] or not models:
        raise ValueError("usage: evaluate.py CONFIG model=PATH[,PATH...] [key=value ...]")
    config = load_config(rest[0], rest[1:])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    seen: list[dict] = []  # architectures whose random inits are in the table
    train = test = None
    for path in models:
        start = time.perf_counter()
        encoder = open_encoder(path, config.modality)
        train, test = _open_splits(encoder, path, config)
        if not rows:
            print(*train.samples.report.lines(), *(test.samples.report.lines() if test else []), sep="\n", flush=True)
            if config.evaluate.raw:
                rows.append(evaluate_raw(train, test, config.evaluate, device))
        architecture = {"frontends": encoder.config.frontends, "trunk": encoder.config.trunk}
        if config.evaluate.random_seeds and architecture not in seen:
            seen.append(architecture)
            rows += _random_inits(encoder.config, train, test, config, device)
        rows += evaluate_encoder(path, _moved(encoder, device), train, test, config.evaluate, device)
        print(f"{path}: {time.perf_counter() - start:.0f} s", flush=True)
    assert train is not None
    size = len(train.labels if test is None else test.labels)
    print(f"\n{table(rows)}\n")
    print(f"Percent of {size} samples; one standard error is at most {50 / size**0.5:.1f} points. ± is the spread over random inits.")
    given = any(arg.startswith("run.dir=") for arg in rest)
    target = _result_file(models[0], config, given)
    target.parent.mkdir(parents=True, exist_ok=True)
    result = {"models": models, "config": rest[0], "evaluate": dataclasses.asdict(config.evaluate), "data": str(_data(config).path)}
    result |= {"train_samples": len(train.labels), "test_samples": 0 if test is None else len(test.labels), "rows": [row._asdict() for row in rows]}
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


def _data(config: Config):
    return dataclasses.replace(config.data, path=config.evaluate.path or config.data.path)


def _open_splits(encoder: D2vModel, path: str, config: Config) -> tuple[Split, Split | None]:
    """Samples as this model reads them: with its own frontend's settings and tokenizer."""
    modality, settings = plugins.load("modalities", config.modality), config.evaluate
    data, frontend = _data(config), modality.FrontendConfig(**encoder.config.frontends[config.modality])
    if not data.path:
        raise ValueError("no data: give data.path=... or evaluate.path=...")

    def samples(split: str):
        found = modality.Samples(data, frontend, split=split, folder=Path(path))
        found.report.check(data.max_bad_share, f"split {split!r} of {data.path}")
        return found

    return label_splits(samples(settings.train_split), samples(settings.test_split) if settings.test_split else None, settings)


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
    name = f"{Path(model).name}_layer-{config.evaluate.layer}.json"
    if given:
        return Path(config.run.dir) / "evaluation" / name
    return (Path(model).resolve().parent if Path(model).exists() else Path()) / "evaluation" / name


if __name__ == "__main__":
    run_cli(main)
