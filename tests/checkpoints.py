"""Checkpoints as other programs save them, what fair-esm makes of them, and what esmflow does."""

from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from esm.model.esm2 import ESM2
from esmflow.engine.engine import Engine
from esmflow.errors import DataError
from esmflow.model import weights
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from transformers import EsmConfig, EsmForMaskedLM, PreTrainedModel

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "XBZUOW", "M"]

#: For each of SEQUENCES, its vectors by layer and representation.
Vectors = list[dict[tuple[int, str], np.ndarray]]


def vectors(path: Path, layers: int, adapter: Path | None = None) -> dict[Output, np.ndarray]:
    """What esmflow makes of the weights at `path`: for each output, a row for each of SEQUENCES."""
    outputs = [Output(layer, name) for layer in range(layers + 1) for name in reference.REPRESENTATIONS]
    descriptor = weights.describe("m", path, adapter)
    engine = Engine(Esm(weights.load(descriptor), torch.device("cpu")))
    embedded = engine.embed([sequence.encode() for sequence in SEQUENCES], outputs)
    assert embedded.reasons == [None] * len(SEQUENCES)
    return {output: np.array(values) for output, values in embedded.values.items()}


def by_fair_esm(model: torch.nn.Module) -> Vectors:
    """What fair-esm's module makes of SEQUENCES, one at a time."""
    return [reference.represent(model, sequence) for sequence in SEQUENCES]


def assert_vectors(path: Path, expected: Vectors, adapter: Path | None = None) -> None:
    """The vectors of the weights at `path` are these, to 1e-5."""
    actual = vectors(path, max(layer for layer, _ in expected[0]), adapter)
    for row, representations in enumerate(expected):
        for (layer, name), vector in representations.items():
            error = np.linalg.norm(actual[Output(layer, name)][row] - vector)
            assert error <= 1e-5 * (np.linalg.norm(vector) or np.linalg.norm(representations[layer, "mean"]))


def refusal(path: Path, adapter: Path | None = None) -> str:
    """The one line with which weights are refused."""
    with pytest.raises(DataError) as caught:
        weights.describe("m", path, adapter)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def transformers_esm2(
    kind: type[PreTrainedModel] = EsmForMaskedLM, seed: int = 0, **settings: object
) -> PreTrainedModel:
    """A random ESM-2 of 3 layers, as transformers has it."""
    config = {
        "vocab_size": 33,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "position_embedding_type": "rotary",
        "pad_token_id": 1,
        "mask_token_id": 32,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.2,
        "num_labels": 3,
    }
    torch.manual_seed(seed)
    model = kind(EsmConfig(**config | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def old_names(state: dict[str, torch.Tensor], layers: int = 3, *, rounded: bool = True) -> dict[str, torch.Tensor]:
    """A state of transformers 5 as versions before saved it: with a rotary buffer in each layer, rounded to fp16."""
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    [name] = [name for name in state if name.endswith("rotary_embeddings.inv_freq")]
    frequencies, prefix = state.pop(name), name.removesuffix("rotary_embeddings.inv_freq")
    for layer in range(layers):
        key = f"{prefix}encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        state[key] = frequencies.half().float() if rounded else frequencies.clone()
    return state


def fair_esm_of(state: dict[str, torch.Tensor], heads: int = 4) -> ESM2:
    """fair-esm's module with an ESM-2 whose trunk has transformers' names, and a rotary buffer in each layer."""
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("esm.encoder.layer."))
    names = reference.hugging_face_names(layers)
    theirs = {ours: state[name].float() for ours, name in names.items() if name in state and "positions" not in name}
    theirs["embed_tokens.weight"] = theirs["embed_tokens.weight"][:33]
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("lm_head.")}
    model = ESM2(layers, theirs["embed_tokens.weight"].shape[1], heads, reference.ALPHABET)
    for layer in model.layers:
        size = theirs["layers.0.fc1.weight"].shape[0]
        layer.fc1 = torch.nn.Linear(layer.embed_dim, size)
        layer.fc2 = torch.nn.Linear(size, layer.embed_dim)
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all(name.startswith(("lm_head", "contact_head")) for name in missing), missing
    return model.eval()
