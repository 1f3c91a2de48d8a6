"""Random changes of checkpoints: each gives the vectors that the reference has for it, or one line of refusal."""

import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_esmc as esmc
import torch
from checkpoints import SEQUENCES, Vectors, assert_vectors, by_fair_esm, fair_esm_of, old_names, transformers_esm2
from esmflow.errors import DataError
from safetensors.torch import load_file, save_file
from workflow import FULL_SIZE

ROUNDS = 300 if FULL_SIZE else 14
State = dict[str, torch.Tensor]


def fair_esm2(path: Path) -> None:
    reference.tiny_esm2(path / "weights.pt")


def fair_esm1b(path: Path) -> None:
    reference.tiny_esm1b(path / "weights.pt")


def bare_esm2(path: Path) -> None:
    torch.save(old_names(transformers_esm2().state_dict()), path / "weights.pt")


def esm2_of_transformers(path: Path) -> None:
    transformers_esm2().save_pretrained(path)


def esmc_of_2024(path: Path) -> None:
    esmc.write(path, esmc.tiny_esmc(), "2024")


def esmc_of_biohub(path: Path) -> None:
    esmc.write(path, esmc.tiny_esmc(), "biohub")


def esmc_of_transformers(path: Path) -> None:
    esmc.write(path, esmc.tiny_esmc(), "transformers")


MAKERS = [
    fair_esm2,
    fair_esm1b,
    bare_esm2,
    esm2_of_transformers,
    esmc_of_2024,
    esmc_of_biohub,
    esmc_of_transformers,
]
#: Biohub's name of a tensor, or a part of it, and that of 2024.
BIOHUB = {
    "esmc.": "",
    "layernorm_qkv.layer_norm_": "layernorm_qkv.0.",
    "layernorm_qkv.weight": "layernorm_qkv.1.weight",
    "ffn.layer_norm_": "ffn.0.",
    "fc1_weight": "1.weight",
    "fc2_weight": "3.weight",
}


def load(directory: Path) -> tuple[Path, dict[str, object], State]:
    """The file, what is in it, and its tensors."""
    [path] = [path for path in directory.iterdir() if path.suffix in (".pt", ".pth", ".safetensors")]
    if path.suffix == ".safetensors":
        return path, {}, load_file(path)
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    return path, content, content.get("model", content)


def save(path: Path, content: dict[str, object], state: State) -> None:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(content | {"model": state} if "model" in content else state, path)


def expected_of(content: dict[str, object], state: State) -> Vectors:
    """The reference's vectors of a file that has all that its modules have."""
    if any(name.endswith((".q_ln.weight", ".q_norm.weight")) for name in state):
        return by_transformers({name: tensor.float() for name, tensor in state.items()})
    if "args" in content:
        model = reference.esm.model.esm1.ProteinBertModel(content["args"], reference.ALPHABET)
    elif "cfg" in content:
        model = reference.esm.model.esm2.ESM2(3, 48, 4, reference.ALPHABET)
    else:
        state = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): t.float() for name, t in state.items()}
        for name in [name for name in state if "layer.*" in name]:
            tensor = state.pop(name)
            state |= {name.replace("*", str(layer)): tensor for layer in range(3)}
        return by_fair_esm(fair_esm_of(state))
    bare = {re.sub(r"^encoder\.(sentence_encoder\.)?", "", name): t.float() for name, t in state.items()}
    missing, unexpected = model.load_state_dict(bare, strict=False)
    assert not unexpected
    assert all(name.startswith(("lm_head", "contact_head")) for name in missing)
    return by_fair_esm(model.eval())


def by_transformers(state: State) -> Vectors:
    """transformers' vectors of an ESM-C."""
    model = esmc.tiny_esmc()
    if "esmc.norm.weight" in state:
        model.load_state_dict(state)
    else:
        for theirs, name_of_2024 in BIOHUB.items():
            state = {name.replace(theirs, name_of_2024): tensor for name, tensor in state.items()}
        esmc.load_2024(model, state)
    return [reference.pool(esmc.all_layers(model, sequence)) for sequence in SEQUENCES]


def mutate(state: State, random: np.random.Generator) -> tuple[str, State]:
    """One change of one tensor: what it is, and the state with it."""
    state = dict(state)
    name = str(random.choice(sorted(state)))
    tensor = state[name]
    kind = random.choice(["drop", "rename", "shape", "dtype", "NaN" if tensor.is_floating_point() else "drop", "add"])
    if kind == "drop":
        del state[name]
    elif kind == "rename":
        parts = name.split(".")
        parts[random.integers(len(parts))] = str(random.choice(["other", "3", "weight", "layer", "1"]))
        state[".".join(parts)] = state.pop(name)
    elif kind == "shape":
        changes = [
            tensor[: len(tensor) // 2],
            torch.cat([tensor, tensor]),
            tensor.mT.contiguous() if tensor.ndim == 2 else tensor[1:],
            tensor[None],
        ]
        state[name] = changes[random.integers(len(changes))]
    elif kind == "dtype":
        dtypes = [torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
        state[name] = tensor.to(dtypes[random.integers(len(dtypes))])
    elif kind == "NaN":
        flat = tensor.clone().flatten()
        flat[random.integers(len(flat))] = random.choice([np.nan, np.inf, -np.inf])
        state[name] = flat.view(tensor.shape)
    else:
        ends = ["scale", "weight_g", "lora_A", "bias_k", "extra.weight"]
        state[f"{name.rpartition('.')[0]}.{random.choice(ends)}"] = torch.randn(4)
    return f"{kind} {name}", state


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_random_change_of_a_checkpoint_gives_its_own_vectors_or_a_refusal(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path)
    path, content, state = load(tmp_path)
    unchanged = expected_of(content, state)
    random = np.random.default_rng(5)
    used, refused = [], []
    for _ in range(ROUNDS):
        change, mutant = mutate(state, random)
        save(path, content, mutant)
        try:
            expected = expected_of(content, mutant)
        except (AssertionError, RuntimeError, KeyError, IndexError, ValueError):
            # What the reference cannot load may be in what the trunk does not use, such as a head.
            expected = unchanged
        line = refusal_or_vectors(tmp_path if path.suffix == ".safetensors" else path, expected)
        assert line is None or len(line.splitlines()) == 1, change
        assert line or not change.startswith("add") or "head" in change, change
        (used if line is None else refused).append(change)
    assert len(used) >= ROUNDS / 12, refused
    assert len(refused) >= ROUNDS / 3, used


def refusal_or_vectors(path: Path, expected: Vectors) -> str | None:
    """The line with which weights are refused; None where their vectors are these."""
    try:
        assert_vectors(path, expected)
    except DataError as error:
        return str(error)
    return None
