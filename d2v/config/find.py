"""Configs by their names: those that d2v brings need no path."""

import difflib
from pathlib import Path

CONFIGS = Path(__file__).parent.parent / "configs"


def find_config(name: str | Path) -> Path:
    """A YAML file as it is named, or one that d2v brings: image/data2vec_tiny, with or without .yaml.

    ValueError: neither; says which names are close.
    """
    if Path(name).is_file():
        return Path(name)
    if found := brought(name):
        return found
    text, names = _short(name), config_names()
    close = [other for other in names if other.endswith(f"/{text}")] or difflib.get_close_matches(text, names, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`d2v configs` lists those that d2v brings"
    raise ValueError(f"no config file {Path(name).absolute()}, and d2v brings none of that name; {hint}")


def brought(name: str | Path) -> Path | None:
    """The config of that name that d2v brings; None: it brings none."""
    return CONFIGS / f"{_short(name)}.yaml" if _short(name) in config_names() else None


def _short(name: str | Path) -> str:
    return str(name).removesuffix(".yaml").removeprefix("configs/")


def config_names() -> list[str]:
    """Those that d2v brings, without the bases that only others build on."""
    paths = [path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("_")]
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in paths)


def purpose(name: str) -> str:
    """The first line of a config's header."""
    return (CONFIGS / f"{name}.yaml").read_text("utf-8").splitlines()[0].removeprefix("# ")
