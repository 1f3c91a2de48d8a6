"""Weights: reading what people have into one checkpoint, whatever family it is of, and what tells it from others."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from esmflow import files
from esmflow.errors import DataError
from esmflow.model import esm_layouts, esm_names, esmc_layouts
from esmflow.model.adapters import adapter_files, merge
from esmflow.model.layouts import Checkpoint, find_trunk
from esmflow.model.state import ADAPTER_CONFIG, MODEL_CARD, State, open_state, weight_files
from esmflow.planned_model import Descriptor
from esmflow.weights_source import OFFICIAL

#: Each family's layouts, and what reads a trunk in one of them.
_FAMILIES = [(esm_names.LAYOUTS, esm_layouts.read), (esmc_layouts.LAYOUTS, esmc_layouts.read)]
#: What models of other kinds, which have parts of the same names, are known by.
_OTHERS = {
    r"\.row_self_attention\.": "an MSA Transformer",
    r"(^|\.)embed_out(\.|$)|\.self_attn\.bias_k$": "an ESM-1",
    r"(^|\.)gvp_encoder\.": "an ESM-IF1",
    r"\.geom_attn\.": "an ESM3",
    r"(^|\.)trunk\.structure_module\.": "an ESMFold",
}


def describe(name: str, path: Path, adapter: Path | None = None) -> Descriptor:
    """Hash and identify the weights at `path` (a file or a directory of transformers), with an adapter merged in.

    Raises DataError for what cannot be used.
    """
    parts, of_adapter = weight_files(path), adapter_files(adapter) if adapter else []
    if not adapter and path.is_dir() and (path / ADAPTER_CONFIG).exists():
        raise DataError(
            f"{path}: has an adapter beside the model, which transformers would apply; "
            f"give this directory as 'adapter', too, or the path of {parts[0].name} for the model alone"
        )
    checkpoint = read(parts, of_adapter)
    return Descriptor(
        name,
        [str(part) for part in parts],
        stamp([*parts, *of_adapter]),
        digest(parts, of_adapter, checkpoint.settings),
        checkpoint.architecture,
        [str(part) for part in of_adapter],
        settings=[*checkpoint.settings],
        licence=licence(parts[0]),
    )


def licence(file: Path) -> str:
    """The licence that the model card beside a weights file names, or that of fair-esm's own; empty for others."""
    card = file.with_name(MODEL_CARD)
    if card.is_file():
        metadata = card.read_text(encoding="utf-8", errors="replace").partition("\n---")[0]
        if match := re.search(r"(?m)^license:\s*[\"']?([\w.-]+)", metadata):
            return match[1]
    return "mit" if file.suffix == ".pt" and file.stem in OFFICIAL else ""


def load(descriptor: Descriptor) -> Checkpoint:
    """Read the weights that a descriptor tells of. Raises DataError if they cannot be read, or are others by now."""
    parts, of_adapter = _files(descriptor)
    checkpoint = read(parts, of_adapter)
    if (checkpoint.architecture, [*checkpoint.settings]) != (descriptor.architecture, descriptor.settings):
        raise _changed(parts[0])
    return checkpoint


def require_unchanged(descriptor: Descriptor) -> None:
    """Read the weights whole; raise DataError unless they are those that the descriptor tells of, to the last bit."""
    parts, of_adapter = _files(descriptor)
    if absent := [part for part in [*parts, *of_adapter] if not part.exists()]:
        raise DataError(f"{absent[0]}: weights are missing; run again with --forcerun fetch_model")
    if digest(parts, of_adapter, descriptor.settings) != descriptor.sha256:
        if stamp([*parts, *of_adapter]) == descriptor.stamp:
            raise DataError(
                f"{parts[0]}: weights are damaged: their SHA-256 is another than when they were fetched, though nobody "
                "wrote to them; delete them, bring them again and run again with --forcerun fetch_model"
            )
        raise _changed(parts[0])


def digest(parts: list[Path], adapter: list[Path], settings: Sequence[str]) -> str:
    """What keys the store: SHA-256 of a weights file in hexadecimal, or of the SHA-256s of all that makes the weights.

    settings: the checkpoint's, which count because they are in no tensor.
    """
    hashes = [files.sha256(part) for part in parts]
    if len(parts) > 1:
        hashes = [_sha256_of_text("".join(hashes))]
    hashes += [files.sha256(part) for part in adapter]
    hashes += settings
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
    try:
        trunk = find_trunk(state, [layout for layouts, _ in _FAMILIES for layout in layouts])
        if not trunk:
            raise _other_model(state)
        [(layouts, read_trunk)] = [family for family in _FAMILIES if trunk.layout in family[0]]
        checkpoint = read_trunk(trunk)
    except DataError as error:
        for pattern, kind in _OTHERS.items():
            if name := next(filter(re.compile(pattern).search, state.tensors), None):
                advice = "which cannot be used; give an ESM-2, ESM-1b, ESM-1v or ESM-C"
                raise state.error(f"holds {kind} ({name}), {advice}") from error
        raise
    return merge(checkpoint, [*adapter], layouts) if adapter else checkpoint


def _files(descriptor: Descriptor) -> tuple[list[Path], list[Path]]:
    """The files of the weights, and those of the adapter."""
    return [Path(part) for part in descriptor.files], [Path(part) for part in descriptor.adapter]


def _changed(file: Path) -> DataError:
    return DataError(f"{file}: weights have changed since they were fetched; run again with --forcerun fetch_model")


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
