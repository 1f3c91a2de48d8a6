"""How the worker writes JSON, for a machine where msgspec is not installed; see gpu.py."""

import dataclasses
import json as _json
from typing import Any


class MsgspecError(Exception):
    pass


class ValidationError(MsgspecError):
    pass


class json:  # noqa: N801
    @staticmethod
    def encode(value: Any) -> bytes:
        content = (
            dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        )
        return _json.dumps(content, default=str).encode()

    @staticmethod
    def format(text: bytes, indent: int) -> bytes:
        return _json.dumps(_json.loads(text), indent=indent).encode()
