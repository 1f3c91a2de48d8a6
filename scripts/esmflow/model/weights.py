"""Weights: reading what people have into one checkpoint, whatever family it is of, and what tells it from others."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from esmflow import files
from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.model import esm_layouts, esmc_layouts
from esmflow.model.adapters import adapter_files, merge
from esmflow.model.layouts import Checkpoint
from esmflow.model.state import State, open_state, weight_files
from esmflow.planned_model import Descriptor

#: Each family's own file, asked in turn.
_FAMILIES = [esm_layouts, esmc_layouts]


def describe(name: str, path: Path, adapter: Path | None = None) -> Descriptor:
    """Hash and identify the weights at `path` (a file or a directory of transformers), with an adapter merged in.

    Raises DataError for what cannot be used.
    """
    parts, of_adapter = weight_files(path), adapter_files(adapter) if adapter else []
    architecture = read(parts, of_adapter).architecture
    return Descriptor(
        name,
        [str(part) for part in parts],
        stamp([*parts, *of_adapter]),
        digest(parts, of_adapter, architecture),
        architecture,
        [str(part) for part in of_adapter],
    )


def load(descriptor: Descriptor) -> Checkpoint:
    """Read the weights that a descriptor tells of. Raises DataError if they cannot be read."""
    return read([Path(part) for part in descriptor.files], [Path(part) for part in descriptor.adapter])


def require_unchanged(descriptor: Descriptor) -> None:
    """Raise DataError unless the weights are there, and those that the descriptor tells of."""
    parts, of_adapter = [Path(file) for file in descriptor.files], [Path(file) for file in descriptor.adapter]
    if absent := [part for part in [*parts, *of_adapter] if not part.exists()]:
        raise DataError(f"{absent[0]}: weights are missing; run again with --forcerun fetch_model")
    if stamp([*parts, *of_adapter]) == descriptor.stamp:
        return
    if digest(parts, of_adapter, descriptor.architecture) != descriptor.sha256:
        raise DataError(
            f"{parts[0]}: weights have changed since they were fetched; run again with --forcerun fetch_model"
        )


def digest(parts: list[Path], adapter: list[Path], architecture: Architecture) -> str:
    """What keys the store: SHA-256 of a weights file in hexadecimal, or of the SHA-256s of all that makes the weights.

    What config.json beside them says of LayerNorms is in no tensor, and so counts here unless it is as usual.
    """
    hashes = [files.sha256(part) for part in parts]
    if len(parts) > 1:
        hashes = [_sha256_of_text("".join(hashes))]
    hashes += [files.sha256(part) for part in adapter]
    if architecture.norm_eps != Architecture.norm_eps:
        hashes.append(f"norm_eps={architecture.norm_eps}")
    return hashes[0] if len(hashes) == 1 else _sha256_of_text("".join(hashes))


def stamp(parts: list[Path]) -> list[list[int]]:
    """Size and time of change of each file: while they stay, so does the digest."""
    return [[part.stat().st_size, part.stat().st_mtime_ns] for part in parts]


def read(parts: list[Path], adapter: Sequence[Path] = ()) -> Checkpoint:
    """Read weights of any supported family and layout, and merge an adapter into them.

    parts, adapter: the files of each, as `weight_files` and `adapter_files` give them.
    Raises DataError if a file is cut short or damaged, holds another kind of model (saying what there is), or holds
    anything within the trunk that is not understood.
    """
    state = open_state(parts)
    for family in _FAMILIES:
        if checkpoint := family.read(state):
            return merge(checkpoint, [*adapter], family.LAYOUTS) if adapter else checkpoint
    raise _other_model(state)


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _other_model(state: State) -> DataError:
    names = sorted(state.tensors, key=lambda name: not re.search(r"\.\d+\.", name))
    some = ", ".join(f"{name} {list(state.tensors[name].shape)}" for name in names[:3])
    if all(".lora_" in name or not re.search(r"\.\d+\.", name) for name in names) and ".lora_" in some:
        return state.error("holds a LoRA adapter alone; give its directory as 'adapter' and the model as 'weights'")
    return state.error(
        f"not a model of ESM-2, ESM-1b, ESM-1v or ESM-C; found {len(names)} tensors ({some}, ...) but no layers of one"
    )
