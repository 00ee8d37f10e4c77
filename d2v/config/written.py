"""What is written in YAML and on the command line, read by the type that a setting declares; and written as YAML.

A text is taken as it is written: 0123, on and `a: b` are names where a name is asked for.
"""

import contextlib
import os
import re
import types
import typing
from typing import Any

import yaml

from d2v.settings import shortened, type_name

MOST_BRACKETS = 1000  # settings have a few
NULLS = ("null", "Null", "NULL", "~")
FLOAT, TIMESTAMP = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")  # 1e3, which YAML 1.1 takes for a text


class Argument(str):
    """What follows `key=` on the command line, not yet read."""


class Whole(int):
    """A whole number of YAML that is written in another way than Python does: 0123."""

    written: str


class Real(float):
    """A number of YAML that is written in another way than Python does: 1.50."""

    written: str


class Loader(yaml.SafeLoader):
    """With 1e3 as a number, no dates, and an error for a key that comes twice; numbers remember how they look."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """ValueError: a key that comes twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"found duplicate key {key}{node.start_mark}")
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Puts in quotes what the Loader would read as something else."""


for _kind in (Loader, Dumper):
    _kind.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))
    for _first, _resolvers in _kind.yaml_implicit_resolvers.items():
        _kind.yaml_implicit_resolvers[_first] = [one for one in _resolvers if one[0] != TIMESTAMP]


def dumped(values: dict) -> str:
    """Plain dictionaries as YAML."""
    return yaml.dump(values, Dumper=Dumper, allow_unicode=True, sort_keys=False)


def _whole(loader: Any, node: yaml.ScalarNode) -> int:
    value = loader.construct_yaml_int(node)
    return value if str(value) == node.value else _as_written(Whole(value), node.value)


def _real(loader: Any, node: yaml.ScalarNode) -> float:
    value = loader.construct_yaml_float(node)
    return value if str(value) == node.value else _as_written(Real(value), node.value)


def _as_written(number: Any, text: str) -> Any:
    number.written = text
    return number


Loader.add_constructor("tag:yaml.org,2002:int", _whole)
Loader.add_constructor(FLOAT, _real)


def parsed(text: str) -> Any:
    """What a text is as YAML. ValueError: it is none, with the reason on one line."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:  # of which the reader would take minutes
        raise ValueError(f"it has more than {MOST_BRACKETS} brackets")
    try:
        return yaml.load(text, Loader)
    except Exception as error:  # whatever the YAML reader raises; among others: a duplicate key, or too deep a nesting
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def section_of(value: Any) -> Any:
    """What was given for a section: a dict; {} for nothing; else the value as it is, which is none."""
    if value is None or (isinstance(value, Argument) and value in ("", *NULLS)):
        return {}
    if isinstance(value, Argument):
        try:
            found = parsed(value)
        except ValueError:
            return value
        return found if isinstance(found, dict) else value
    return value


def read(value: Any, kind: Any, default: Any = None) -> Any:
    """A value, or the text of one, as a setting of this type takes it. ValueError: it is none, and what it may be.

    `default` tells what Any is: where it is a text, a text or a list of texts.
    """
    if kind is Any and isinstance(default, str):
        return _string_or_list(value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [part for part in typing.get_args(kind) if part is not type(None)]
        empty = value is None or (isinstance(value, Argument) and value in NULLS)
        return None if empty and len(others) < len(typing.get_args(kind)) else read(value, others[0])
    if kind is str:
        return _string(value)
    if kind in (bool, int, float):
        return _scalar(value, kind)
    if typing.get_origin(kind) is list:
        found = parsed(value) if isinstance(value, Argument) else value
        if not isinstance(found, list | tuple):
            raise ValueError(f"it must be {type_name(kind)}, such as [{shortened(found).strip(chr(39))}]")
        return [read(entry, typing.get_args(kind)[0]) for entry in found]
    return parsed(value) if isinstance(value, Argument) else value


def unquoted(values: dict) -> dict:
    """A section with what the command line says as texts."""
    return {name: _string(value) if isinstance(value, Argument) else value for name, value in values.items()}


def in_home(value: Any) -> Any:
    """A path, or a list of some, whose `~` is the home folder; where `~name` is nobody's it is a name like others."""
    if isinstance(value, list):
        return [in_home(one) for one in value]
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    expanded = os.path.expanduser(value)  # noqa: PTH111
    return os.path.abspath(value) if expanded.startswith("~") else expanded  # noqa: PTH100


def _scalar(value: Any, kind: type) -> Any:
    """true or false, or a number; a text is read as YAML."""
    found = parsed(value) if isinstance(value, str) else value
    if kind is bool and isinstance(found, bool):
        return found
    if kind is int and isinstance(found, int) and not isinstance(found, bool):
        return int(found)
    if kind is float and isinstance(found, int | float) and not isinstance(found, bool):
        try:
            return float(found)
        except OverflowError:
            pass
    raise ValueError(f"it must be {type_name(kind)}")


def _string_or_list(value: Any) -> Any:
    if isinstance(value, Argument) and value.startswith("["):
        with contextlib.suppress(ValueError):  # a name that begins so
            value = parsed(value)
    if isinstance(value, list | tuple):
        return [_string(one) for one in value]
    return value if isinstance(value, os.PathLike) else _string(value)


def _string(value: Any) -> str:
    """As it is written; in quotes, what stands between them."""
    if isinstance(value, Argument):
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        return _between(value) if quoted else str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Whole | Real):
        return value.written
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError("it must be text: write it in quotes")


def _between(value: Argument) -> str:
    try:
        found = parsed(value)
    except ValueError:
        return str(value)
    return found if isinstance(found, str) else str(value)
