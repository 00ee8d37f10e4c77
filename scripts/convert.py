"""Turns transformers' Data2Vec and ViT models into d2v's, d2v's into those, and either into an ONNX file.

d2v convert SOURCE TARGET [run.overwrite=true]

SOURCE is a folder, a run's folder or a name on the Hub; what it holds says the direction. TARGET is a new folder, with
the preprocessor or tokenizer of SOURCE, or a file that ends in .onnx.
"""

import shutil
from pathlib import Path

from transformers.utils.hub import cached_file

from d2v.config.cli import run_cli
from d2v.config.written import in_home
from d2v.files import check_file, check_folder, check_place, record_results, replaced, writing
from d2v.interop.huggingface import from_transformers, to_transformers
from d2v.interop.onnx import export_onnx
from d2v.interop.pretrained import load_ours, read_config
from d2v.models.configuration import D2vConfig
from d2v.training.weights import folder_of_model

OPTIONS = {"run.overwrite=true": True, "run.overwrite=false": False}
PREPROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def main(argv: list[str]) -> None:
    """`argv`: SOURCE TARGET [run.overwrite=true]. ValueError: whatever the user can mend."""
    paths, options = [in_home(a) for a in argv if a not in OPTIONS], [OPTIONS[a] for a in argv if a in OPTIONS]
    if len(paths) != 2:
        raise ValueError(
            "usage: d2v convert SOURCE TARGET [run.overwrite=true]; "
            f"{len(paths)} of two paths were given: {' '.join(paths)}"
        )
    source, target = _model_of(paths[0]), Path(paths[1])
    _check_target(target, source, any(options))
    is_ours = isinstance(read_config(source), D2vConfig)
    model = load_ours(source) if is_ours else from_transformers(source)
    if target.suffix == ".onnx":
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            record_results(target.with_name(name) for name in _onnx_files(target))
            difference = export_onnx(model, target)
        print(f"{target}: onnxruntime and torch differ by at most {difference:.1e}")
        return
    converted = to_transformers(model) if is_ours else model
    with replaced(target) as draft:
        converted.save_pretrained(draft)
        copied = copy_preprocessor(source, draft)
    beside = ", ".join(copied) or "no preprocessor or tokenizer: SOURCE has none"
    print(f"{target}: {type(converted).__name__}, with {beside}")


def copy_preprocessor(source: str, folder: Path) -> list[str]:
    """Copies the preprocessor's and tokenizer's files of a folder or Hub name; their names."""
    copied = []
    for name in PREPROCESSORS:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            shutil.copyfile(path, folder / name)
            copied.append(name)
    return copied


def _check_target(target: Path, source: str, overwrite: bool) -> None:
    """ValueError: nothing can be written there, or something is there that may not be replaced.

    What d2v wrote may be, if it is not the source's own.
    """
    check_place(target)
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; run.overwrite=true replaces it")
    if target.exists() and target.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise ValueError(f"{target} holds SOURCE, {source}; run.overwrite does not remove it")
    if target.exists() and target.is_dir() != (target.suffix != ".onnx"):
        raise ValueError(
            f"{target} is not what would be written there (a folder, or an .onnx file); "
            "run.overwrite does not remove it"
        )
    if target.suffix != ".onnx":
        check_folder(target)
        return
    for name in _onnx_files(target):
        check_file(target.with_name(name))


def _onnx_files(target: Path) -> list[str]:
    """The file, and the one beside it that holds large weights."""
    return [target.name, f"{target.name}.data"]


def _model_of(source: str) -> str:
    return str(folder_of_model(Path(source)))


if __name__ == "__main__":
    run_cli(main)
