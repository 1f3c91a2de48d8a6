"""Writes what is written of the config's keys from their declaration: the JSON schema, the example, README's table.

`python -m esmflow.config.documents`, after any change of the declaration.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema

from esmflow.config.check import check_config
from esmflow.config.declaration import Config

_ROOT = Path(__file__).parents[3] / "config"
_EXAMPLE = {"samples": "config/samples.tsv", "models": {"esm2_t33_650M_UR50D": {"weights": "fair-esm"}}}


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def documents() -> dict[Path, str]:
    """The text of each file that follows from the declaration."""
    schema = {"$schema": GenerateJsonSchema.schema_dialect, **Config.model_json_schema(schema_generator=_WithoutTitles)}
    readme = _ROOT / "README.md"
    table = "".join(f"| {' | '.join(row)} |\n" for row in _rows(schema))
    return {
        _ROOT / "schemas" / "config.schema.json": json.dumps(schema, indent=2) + "\n",
        _ROOT / "config.yaml": _example(),
        readme: re.sub(r"(?m)(^\|.*\n)+", lambda _: table, readme.read_text(encoding="utf-8"), count=1),
    }


def _rows(schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield "key", "type", "default", "example", "meaning", "a change of it"
    yield ("---",) * 6
    yield from _keys(schema, schema["$defs"], "")


def _keys(part: dict[str, Any], parts: dict[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, key in part["properties"].items():
        if "$ref" in key:
            yield from _keys(parts[Path(key["$ref"]).name], parts, f"{prefix}{name}.")
            continue
        default = "none, it must be given" if name in part.get("required", ()) else _value(key["default"])
        yield f"`{prefix}{name}`", _type(key), default, _value(key["examples"][0]), key["description"], key["change"]
        for entry in key.get("patternProperties", {}).values():
            yield from _keys(parts[Path(entry["$ref"]).name], parts, f"{prefix}{name}.NAME.")


def _type(key: dict[str, Any]) -> str:
    if "anyOf" in key:
        return " or ".join(f"`{kind['const']}`" if "const" in kind else _type(kind) for kind in key["anyOf"])
    words = {"object": "map", "array": "list", "integer": "number", "boolean": "`true` or `false`", "string": "text"}
    return "path" if key.get("format") == "path" else words.get(key["type"], key["type"])


def _value(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return "none" if value is None else f"`{text}`"


class _ListsInOneLine(yaml.SafeDumper):  # type: ignore[misc]
    pass


_ListsInOneLine.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _example() -> str:
    text = "# yaml-language-server: $schema=schemas/config.schema.json\n# Every key is explained in config/README.md.\n"
    for name, value in check_config(_EXAMPLE).items():
        part = yaml.dump({name: value}, Dumper=_ListsInOneLine, sort_keys=False)
        text += f"\n{part}\n" if isinstance(value, dict) else part
    return text.replace("\n\n\n", "\n\n")


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
