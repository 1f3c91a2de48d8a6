"""The kinds of values that keys of the config hold, and what is said of a wrong one."""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails

from esmflow.weights_source import is_path


def _expanded(path: str) -> str:
    """A path with the `~` and `$VAR` in it replaced as a shell does, unless it is a file as it stands.

    Raises ValueError for what stands for nothing.
    """
    if os.path.isfile(path):  # noqa: PTH113 (Path's raises for a name that is too long)
        return path
    for variable in re.findall(r"\$\{?(\w+)", path):
        if variable not in os.environ:
            raise ValueError(f"{path!r}: the environment variable {variable} is not set")
    expanded = os.path.expandvars(path)
    try:
        return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded
    except RuntimeError:
        raise ValueError(f"{path!r}: there is no such home directory; write ./~ for a name that begins so") from None


def _place(value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r:.200} is not a path")
    path = _expanded(value)
    if wrong := re.search(r"[\x00-\x1f]", path):
        raise ValueError(f"{path!r}: this path cannot hold {wrong[0]!r}; use another")
    return Path(path)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; correct the path")
    return path


def _without_braces(path: Path) -> Path:
    if wrong := re.search(r"[{}]", str(path)):
        raise ValueError(
            f"'{path}': this path cannot hold {wrong[0]!r}, which means a wildcard to Snakemake; use another"
        )
    return path


def _adapter(value: str) -> str:
    path = _expanded(value)
    if not Path(path).is_dir():
        raise ValueError(f"{path!r} is no directory; give that in which PEFT has saved the adapter")
    return path


def _weights(value: str) -> str:
    return _expanded(value) if is_path(value) else value


_Items = TypeVar("_Items", bound=tuple[object, ...])


def _distinct(items: _Items) -> _Items:
    for item in items:
        if items.count(item) > 1:
            raise ValueError(f"{item!r} is listed twice")
    return items


def _auto_or_number(value: object, check: ValidatorFunctionWrapHandler) -> object:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"{value!r:.200} is neither 'auto' nor a whole number of at least 3") from None


_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_SHA256 = "^[0-9a-f]{64}$"
_Item = TypeVar("_Item")

#: A file or a directory, with `~` and `$VAR` expanded.
Place = Annotated[Path, BeforeValidator(_place), Field(json_schema_extra={"minLength": 1})]
#: A file that is there.
ExistingFile = Annotated[Place, AfterValidator(_existing)]
#: A directory in which Snakemake's outputs lie.
OutputPlace = Annotated[Place, AfterValidator(_without_braces)]
#: Where a model's weights come from; a path with `~` and `$VAR` expanded.
Weights = Annotated[str, Field(min_length=1), AfterValidator(_weights)]
#: The directory of an adapter, with `~` and `$VAR` expanded.
AdapterDirectory = Annotated[str, Field(min_length=1), AfterValidator(_adapter)]
#: A name that can be part of a path.
Name = Annotated[str, Field(pattern=_NAME)]
#: A checksum.
Sha256 = Annotated[str, Field(pattern=_SHA256)]
#: A list in which nothing is twice. Not strict, since YAML has no tuples.
Distinct = Annotated[
    tuple[_Item, ...], Field(strict=False, json_schema_extra={"uniqueItems": True}), AfterValidator(_distinct)
]
#: Tokens of a pack: a sequence's BOS and EOS and a residue at least.
TokensPerPack = Annotated[Literal["auto"] | Annotated[int, Field(ge=3)], WrapValidator(_auto_or_number)]

_COMPLAINTS = {
    "model_type": "is not a mapping of keys to values",
    "dict_type": "is not a mapping of keys to values",
    "tuple_type": "is not a list",
    "string_type": "is not text; put it in quotes",
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "finite_number": "is not a finite number",
    "bool_type": "is neither true nor false",
    "literal_error": "is not one of {expected}",
    "greater_than": "is not more than {gt:g}",
    "greater_than_equal": "is less than {ge}",
    "too_short": "is empty",
    "string_too_short": "is empty",
    "invalid_key": "is not text; put it in quotes",
    _NAME: "is not a name of at most 100 letters, digits, '.', '_' and '-' that begins with a letter or a digit",
    _SHA256: "is not a SHA-256 of 64 digits (0 to 9, a to f)",
}


def as_meant(value: Any, typed: object = None) -> Any:
    """A copy in which 8.0 is 8, a name that YAML takes for a number is text, and what was typed as a number is one."""
    if isinstance(value, Mapping):
        parts = typed if isinstance(typed, Mapping) else {}
        return {str(key) if type(key) is int else key: as_meant(part, parts.get(key)) for key, part in value.items()}
    if isinstance(value, list):
        return [as_meant(part, part if value == typed else None) for part in value]
    if isinstance(value, str) and value == typed:
        value = _read(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read(text: str) -> object:
    for parse in (int, float):
        with contextlib.suppress(ValueError):
            return parse(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def dotted(place: tuple[int | str, ...]) -> str:
    """Where a key or value is in the config, as messages tell it: `models.NAME.layers: `."""
    parts = [str(part) if str(part).isprintable() else repr(part) for part in place]
    return f"{'.'.join(parts)}: " if parts else ""


def complaint(error: ErrorDetails) -> str:
    """What pydantic has found wrong with a value, in one line."""
    place, value, kind, context = error["loc"], error["input"], error["type"], error.get("ctx", {})
    if kind == "missing":
        return f"{dotted(place[:-1])}key '{place[-1]}' is missing"
    if kind == "invalid_key":
        place = place[:-1]
    elif place[-1:] == ("[key]",):
        place = place[:-2]
    elif value is None:
        return f"{dotted(place)}no value is given"
    if kind == "value_error":
        return f"{dotted(place)}{context['error']}"
    text = _COMPLAINTS[context["pattern"] if kind == "string_pattern_mismatch" else kind]
    return f"{dotted(place)}{value!r:.200} {text.format(**context)}"
