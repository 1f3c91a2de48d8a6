"""What weights files hold, as they hold it: tensors by name, and the settings that lie with them."""

import argparse
import io
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import load_file

from esmflow.errors import DataError, passing

_Value = TypeVar("_Value", bool, int, float, str)

#: The files of a directory that hold its weights, in the order in which transformers looks for them.
OF_DIRECTORY = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
]
#: What transformers keeps a model's settings in, beside its weights.
SETTINGS = "config.json"
#: The model card of the Hugging Face Hub.
MODEL_CARD = "README.md"
#: What PEFT keeps an adapter's settings in.
ADAPTER_CONFIG = "adapter_config.json"
#: Modules that wrappers put between a module and its parameters, wherever they wrap one.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: What checkpoints may hold besides tensors: arguments, and numbers of NumPy, such as a loss. None of it runs code.
_SAFE: list[Any] = [
    argparse.Namespace,
    io.BytesIO,
    *(
        (kind, f"{module}.{kind.__name__}")
        for module in ("pathlib", "pathlib._local")
        for kind in (pathlib.PosixPath, pathlib.PurePosixPath)
    ),
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, function in (("scalar", multiarray.scalar), ("_reconstruct", multiarray._reconstruct))
    ),
]
#: What a trainer keeps an optimizer's state under: tensors that may bear the names of those they are for.
_OPTIMIZER = re.compile(r"optim(izer)?s?(_states?)?(_dict)?")
#: What some files begin with that are taken for weights, and what to do then.
_NO_WEIGHTS = [
    (
        rb"(\xef\xbb\xbf)?\s*[<{]",
        "is a web page or a server's message, not weights; download it again, past any page that asks for a login",
    ),
    (rb"version https://git-lfs", "is Git LFS's pointer to the file, not the file; fetch it with git lfs pull"),
]


@dataclass(frozen=True)
class State:
    """The tensors and settings of a model's weights files."""

    path: Path
    """The first of the files."""
    tensors: Mapping[str, torch.Tensor]
    """By the names that they have there, without what torch's wrappers put between."""
    settings: Mapping[str, object]
    """fair-esm's own arguments within the file, else what config.json beside it says."""
    from_config: bool = False
    """Whether they are of config.json."""

    def error(self, text: str) -> DataError:
        """An error about these weights, on one line whatever names they have."""
        return DataError("".join(char if char.isprintable() else "?" for char in f"{self.path}: {text}"))

    def setting(self, name: str, kind: type[_Value]) -> _Value | None:
        """A setting, None if there is none. Raises DataError if it is of another kind."""
        value = self.settings.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        raise self.error(
            f"its settings (config.json) have {name}: {str(value)[:40]!r}; give the model's own config.json"
        )


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights at `path`: itself, or those of a directory of transformers, in order.

    Raises DataError if there are none.
    """
    if not path.exists():
        raise DataError(f"{path}: no such weights file; put it there or correct 'weights' in the config")
    if not path.is_dir():
        return [path]
    present = [path / name for name in OF_DIRECTORY if (path / name).exists()]
    if not present:
        if (path / ADAPTER_CONFIG).exists():
            raise DataError(
                f"{path}: holds an adapter without the model it adapts; "
                "give this directory as 'adapter' and the model as 'weights'"
            )
        raise DataError(f"{path}: holds none of {', '.join(OF_DIRECTORY)}; give the path of its weights file")
    if present[0].suffix != ".json":
        return present[:1]
    places = read_object(present[0]).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise DataError(f"{present[0]}: is damaged; download the directory again")
    parts = [path / Path(str(name)).name for name in sorted(set(map(str, places.values())))]
    if absent := [part for part in parts if not part.is_file()]:
        raise DataError(f"{absent[0]}: named by {present[0].name} but missing; download the directory again")
    return parts


def contact_regression(path: Path) -> Path:
    """Where fair-esm keeps the contact head of a weights file: beside it."""
    return path.with_name(f"{path.stem}-contact-regression.pt")


def open_state(parts: list[Path]) -> State:
    """The state of a model that lies in these files.

    Raises DataError for a file that is cut short or damaged, or is none of weights.
    """
    tensors: dict[str, torch.Tensor] = {}
    settings: dict[str, object] = {}
    for part in parts:
        of_part, arguments = open_file(part)
        if repeated := tensors.keys() & of_part.keys():
            raise DataError(f"{part}: {min(repeated)} is in another file, too; download the directory again")
        tensors |= of_part
        settings |= arguments
    config = parts[0].with_name(SETTINGS)
    if not settings and config.exists():
        return State(parts[0], tensors, read_object(config), from_config=True)
    return State(parts[0], tensors, settings)


def open_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and fair-esm's settings of one file, told by content: what torch saves, or safetensors.

    Tensors in dictionaries of a checkpoint of a trainer are named by the way to them, `state_dict.esm.encoder...`.
    """
    content = _content(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _flat(content):
        bare = _WRAPPER.sub("", name)
        if bare in tensors:
            raise DataError(f"{path}: holds {bare} twice, with and without a wrapper; save its state_dict() anew")
        tensors[bare] = tensor
    if not tensors:
        keys = ", ".join(map(str, content))[:200] or "none"
        raise DataError(f"{path}: holds no tensors, such as ESM's embed_tokens.weight; top-level keys: {keys}")
    return tensors, _fairseq_settings(content)


def read_object(path: Path) -> dict[str, object]:
    """A JSON file that holds an object. Raises DataError for any other."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise passing(error, path) or DataError(f"{path}: is damaged or cannot be read; download it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: is damaged: it holds no JSON object; download it again")
    return value


def _content(path: Path) -> object:
    try:
        with path.open("rb") as file:
            magic = file.read(64)
    except OSError as error:
        raise passing(error, path) or DataError(
            f"{path}: cannot be read ({error.strerror}); correct 'weights' in the config"
        ) from error
    for beginning, advice in _NO_WEIGHTS:
        if re.match(beginning, magic):
            raise DataError(f"{path}: {advice}")
    try:
        if magic[8:9] == b"{":
            return load_file(path)
        # A path with the suffix of the other format would be read as that.
        with path.open("rb") as file, torch.serialization.safe_globals(_SAFE):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # Of a damaged file, torch and safetensors raise nearly everything.
        if passed := passing(error, path):
            raise passed from error
        reason = " ".join(str(error).split())
        if code := re.search(r"GLOBAL (\S+)|got <class '(\S+)'>", reason):
            raise DataError(
                f"{path}: holds objects of Python besides tensors ({code[1] or code[2]}), which is not safe to read; "
                "save the weights alone: torch.save(model.state_dict(), path) or model.save_pretrained(directory)"
            ) from error
        # What torch says of any file that is none of its own tells a reader nothing.
        told = "" if reason.startswith("Weights only load failed") else f" ({reason[:80] or 'it ends too early'})"
        raise DataError(
            f"{path}: weights file is cut short or damaged, or not one of .pt, .bin and .safetensors{told}; "
            "fetch it again"
        ) from error


def _flat(content: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in dictionaries within each other, by their way, but those of an optimizer."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict) and not _OPTIMIZER.fullmatch(str(key)):
            yield from _flat(value, f"{prefix}{key}.")


def _fairseq_settings(content: Mapping[object, object]) -> dict[str, object]:
    """What fair-esm keeps beside the tensors, under transformers' names: `cfg.model` (ESM-2) or `args` (ESM-1b, 1v)."""
    cfg = content.get("cfg")
    namespace = cfg.get("model") if isinstance(cfg, dict) else content.get("args")
    values = vars(namespace) if isinstance(namespace, argparse.Namespace) else {}
    values = {str(name).removeprefix("encoder_"): value for name, value in values.items()}
    # Trainers keep arguments of their own under that name.
    if not isinstance(cfg, dict) and values.get("arch") != "roberta_large":
        return {}
    names = {
        "layers": "num_hidden_layers",
        "embed_dim": "hidden_size",
        "ffn_embed_dim": "intermediate_size",
        "attention_heads": "num_attention_heads",
        "token_dropout": "token_dropout",
    }
    settings: dict[str, object] = {new: values[old] for old, new in names.items() if old in values}
    if not isinstance(cfg, dict):
        # As fair-esm takes it where the file does not say.
        settings.setdefault("token_dropout", False)
    if settings:
        settings["position_embedding_type"] = "rotary" if isinstance(cfg, dict) else "absolute"
    return settings
