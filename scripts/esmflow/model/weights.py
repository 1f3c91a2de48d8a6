"""ESM weights files: reading every layout into one, and telling the kind of model from the file itself.

Names of tensors are fair-esm's (`esm/model/esm2.py`, `esm/model/esm1.py`); Hugging Face names are mapped to them.
"""

import argparse
import hashlib
import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from esmflow import files
from esmflow.alphabet import MASK, TOKENS
from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.planned_model import Descriptor

_HUGGING_FACE = [
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.word_embeddings\.", "embed_tokens."),
    (r"^embeddings\.position_embeddings\.", "embed_positions."),
    (r"^embeddings\.layer_norm\.", "emb_layer_norm_before."),
    (r"^encoder\.emb_layer_norm_after\.", "emb_layer_norm_after."),
    (r"^lm_head\.decoder\.", "lm_head."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.query\.", ".self_attn.q_proj."),
    (r"\.attention\.self\.key\.", ".self_attn.k_proj."),
    (r"\.attention\.self\.value\.", ".self_attn.v_proj."),
    (r"\.attention\.self\.rotary_embeddings\.", ".self_attn.rot_emb."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.attention\.LayerNorm\.", ".self_attn_layer_norm."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.fc2."),
    (r"(layers\.\d+)\.LayerNorm\.", r"\1.final_layer_norm."),
]
_LAYER = [
    f"{module}.{part}"
    for module in (
        *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
        "self_attn_layer_norm",
        "fc1",
        "fc2",
        "final_layer_norm",
    )
    for part in ("weight", "bias")
]


@dataclass(frozen=True)
class Checkpoint:
    """The trunk's tensors under fair-esm's names, and the architecture they make."""

    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]


def describe(name: str, path: Path) -> Descriptor:
    """Hash and identify the weights at `path` (a file or a Hugging Face directory). Raises DataError."""
    parts = weight_files(path)
    checkpoint = read(parts)
    return Descriptor(name, [str(part) for part in parts], stamp(parts), digest(parts), checkpoint.architecture)


def digest(parts: list[Path]) -> str:
    """SHA-256 of a weights file in hexadecimal, or of the SHA-256s of several."""
    hashes = [files.sha256(part) for part in parts]
    return hashes[0] if len(parts) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def stamp(parts: list[Path]) -> list[list[int]]:
    """Size and time of change of each file: while they stay, so does the digest."""
    return [[part.stat().st_size, part.stat().st_mtime_ns] for part in parts]


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights at `path`: itself, or those of a Hugging Face directory, in order."""
    if not path.exists():
        raise DataError(f"{path}: no such weights file; put it there or correct 'weights' in the config")
    if not path.is_dir():
        return [path]
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (path / index).exists():
            names = _json(path / index).get("weight_map")
            if not isinstance(names, dict):
                raise DataError(f"{path / index}: is damaged; download the directory again")
            parts = [path / Path(str(name)).name for name in sorted(set(names.values()))]
            if absent := [part for part in parts if not part.exists()]:
                raise DataError(f"{absent[0]}: named by {index} but missing; download the directory again")
            return parts
    for file in ("model.safetensors", "pytorch_model.bin"):
        if (path / file).exists():
            return [path / file]
    raise DataError(f"{path}: directory holds neither model.safetensors nor pytorch_model.bin")


def contact_regression(path: Path) -> Path:
    """Where fair-esm keeps the contact head of a weights file: beside it."""
    return path.with_name(f"{path.stem}-contact-regression.pt")


def read(parts: list[Path]) -> Checkpoint:
    """Read weights of any supported layout.

    Raises DataError if a file is cut short or damaged, or holds another kind of model (saying what was found).
    """
    raw: dict[str, torch.Tensor] = {}
    settings: dict[str, object] = {}
    for part in parts:
        tensors, found = _read_file(part)
        raw |= tensors
        settings |= found
    config = parts[0].with_name("config.json")
    if config.exists():
        settings = _json(config) | settings
    tensors = {_canonical(str(name)): tensor for name, tensor in raw.items()}
    regression = contact_regression(parts[0])
    if regression.exists():
        tensors |= {_canonical(name): tensor for name, tensor in _read_file(regression)[0].items()}
    architecture = _architecture(parts[0], tensors, settings)
    if architecture.kind == "ESM-1b" and architecture.lm_head:
        # fair-esm does so when it loads such a file; its head and its embedding are one tensor.
        tensors["lm_head.weight"] = tensors["lm_head.weight"].index_fill(0, torch.tensor([MASK]), 0.0)
    return Checkpoint(architecture, tensors)


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Tensors and settings of one file: fair-esm .pt, a plain state dict, or .safetensors, told by content."""
    with path.open("rb") as file:
        magic = file.read(9)
    try:
        if magic[8:] == b"{":
            return load_file(path), {}
        with torch.serialization.safe_globals([argparse.Namespace]):
            if magic.startswith(b"PK") and path.suffix != ".safetensors":
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                # torch takes a path that ends in .safetensors for that format, whatever it holds.
                with path.open("rb") as file:
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, struct.error, OSError) as error:
        reason = (str(error).splitlines() or ["it ends too early"])[0]
        raise DataError(f"{path}: weights file is cut short or damaged ({reason}); fetch it again") from error
    except (pickle.UnpicklingError, IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not a weights file that can be read safely; give .pt, .bin or .safetensors"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    tensors = content.get("model", content)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise DataError(f"{path}: no dictionary of tensors found; top-level keys: {', '.join(map(str, content))[:200]}")
    return tensors, _fairseq_settings(content)


def _fairseq_settings(content: Mapping[str, object]) -> dict[str, object]:
    """What fair-esm keeps beside the tensors: `cfg.model` (ESM-2) or `args` (ESM-1b, ESM-1v)."""
    cfg = content.get("cfg")
    namespace = cfg.get("model") if isinstance(cfg, dict) else content.get("args")
    if not isinstance(namespace, argparse.Namespace):
        return {}
    found = {name.removeprefix("encoder_"): value for name, value in vars(namespace).items()}
    return {
        new: found[old]
        for old, new in (("attention_heads", "num_attention_heads"), ("token_dropout", "token_dropout"))
        if old in found
    }


def _canonical(name: str) -> str:
    name = re.sub(r"^encoder\.(sentence_encoder\.)?(?=layers\.|embed_|emb_|lm_head\.|contact_head\.)", "", name)
    name = name.removeprefix("esm.")
    for pattern, replacement in _HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def _architecture(path: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, object]) -> Architecture:
    layers = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    needed = ["embed_tokens.weight", "emb_layer_norm_after.weight", "emb_layer_norm_after.bias"]
    needed += [f"layers.{layer}.{name}" for layer in range(layers) for name in _LAYER]
    if (
        not layers
        or any(name not in tensors for name in needed)
        or tensors["embed_tokens.weight"].shape[0] != len(TOKENS)
    ):
        found = ", ".join(f"{name} {list(tensors[name].shape)}" for name in list(tensors)[:3])
        missing = next((name for name in needed if name not in tensors), f"a {len(TOKENS)}-letter alphabet")
        raise DataError(
            f"{path}: not an ESM-2, ESM-1b or ESM-1v model; found {len(tensors)} tensors "
            f"({found}, ...) but no {missing}"
        )
    frequencies = tensors.get("layers.0.self_attn.rot_emb.inv_freq")
    rotary = (
        frequencies is not None
        or settings.get("position_embedding_type") == "rotary"
        or "embed_positions.weight" not in tensors
    )
    embed_dim = tensors["embed_tokens.weight"].shape[1]
    return Architecture(
        kind="ESM-2" if rotary else "ESM-1b",
        layers=layers,
        embed_dim=embed_dim,
        heads=_heads(path, tensors, settings, layers, embed_dim),
        ffn_dim=tensors["layers.0.fc1.weight"].shape[0],
        token_dropout=bool(settings.get("token_dropout", True)),
        max_residues=None if rotary else tensors["embed_positions.weight"].shape[0] - 4,
        lm_head={"lm_head.weight", "lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.weight"} <= set(tensors),
        contact_head="contact_head.regression.weight" in tensors,
    )


def _heads(
    path: Path, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, object], layers: int, embed_dim: int
) -> int:
    """The number of attention heads: from the rotary frequencies, the contact head or the file's settings."""
    if (frequencies := tensors.get("layers.0.self_attn.rot_emb.inv_freq")) is not None:
        return embed_dim // (2 * len(frequencies))
    if (regression := tensors.get("contact_head.regression.weight")) is not None:
        return regression.shape[1] // layers
    if isinstance(heads := settings.get("num_attention_heads"), int):
        return heads
    raise DataError(f"{path}: the number of attention heads is not in the file; put the model's config.json beside it")


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: is damaged; download the directory again") from error
