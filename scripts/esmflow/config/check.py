"""The check of a config against its declaration: what is wrong is told in one line, with the key that was meant."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esmflow.config.declaration import PARTS, Config
from esmflow.config.values import as_meant, complaint, dotted
from esmflow.errors import ConfigError
from esmflow.planned_model import ModelSpec
from esmflow.weights_source import HubRepository, WheelMember, is_path, official_limits, require_official


def check_config(config: Mapping[str, object], typed: Mapping[str, object] | None = None) -> dict[str, Any]:
    """The config with its defaults filled in. Raises ConfigError for the first thing that is wrong with it.

    `typed` is the part of it that was given with `--config`: Snakemake leaves numbers within `{}` and `[]` as text.
    """
    try:
        checked = Config.model_validate(as_meant(config, typed))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda detail: detail["type"] not in ("extra_forbidden", "invalid_key"))
        text = _unknown_key(first["loc"]) if first["type"] == "extra_forbidden" else complaint(first)
        raise ConfigError(f"config: {text}") from None
    for name, model in checked.models.items():
        _check_weights(name, model.weights)
        if model.weights == "fair-esm":
            _check_official(ModelSpec.of(name, model.model_dump()))
    plain: dict[str, Any] = as_meant(checked.model_dump(mode="json", exclude_none=True))
    return plain


def _check_weights(name: str, weights: str) -> None:
    if weights == "fair-esm":
        require_official(name)
    elif not is_path(weights):
        try:
            (HubRepository if weights.startswith("hf:") else WheelMember).parse(weights)
        except ConfigError as error:
            raise ConfigError(f"config: models.{name}.{error}") from None
    elif not Path(weights).exists():
        raise ConfigError(
            f"config: models.{name}.weights: {weights!r} does not exist; "
            "give the path of a weights file or directory, or 'fair-esm' for the official file"
        )


def _check_official(spec: ModelSpec) -> None:
    """Tell what the name of an official file is enough for, before it is downloaded."""
    layers, longest = official_limits(spec.name)
    try:
        spec.check_layers(layers)
        spec.check_lengths(longest)
    except ConfigError as error:
        raise ConfigError(f"config: {error}") from None


def _unknown_key(place: tuple[int | str, ...]) -> str:
    """An unknown key with the one that was meant: of those that are known there, else one of that name elsewhere."""
    *parents, key = place
    known = list((PARTS[str(parents[0])] if parents else Config).model_fields)
    if near := difflib.get_close_matches(str(key), known, n=1, cutoff=0.5):
        advice = f"did you mean '{near[0]}'?"
    elif elsewhere := [name for name, part in PARTS.items() if key in part.model_fields]:
        advice = f"it is a key of '{elsewhere[0]}'"
    else:
        advice = f"known keys are {', '.join(known)}"
    return f"{dotted(tuple(parents))}unknown key {key!r}; {advice}"
