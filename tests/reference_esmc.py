"""The reference for ESM-C: transformers' own modules, run in float32 on one sequence at a time.

And files of such models, in the layouts that others have for them.
"""

import math
from pathlib import Path

import numpy as np
import reference
import torch
from safetensors.torch import save_file
from transformers import EsmcConfig, EsmcForMaskedLM, EsmcTokenizer

TOKENIZER = EsmcTokenizer()
State = dict[str, torch.Tensor]


def tiny_esmc(
    *, layers: int = 3, embed_dim: int = 128, ffn_dim: int = 192, large: float = 1.0, seed: int = 0
) -> EsmcForMaskedLM:
    """A random ESM-C with heads of 64 components, whose norms and biases show a wrong order or a forgotten term.

    large: how much larger than what goes in the products are that are added to the residual stream.
    """
    torch.manual_seed(seed)
    config = EsmcConfig(
        hidden_size=embed_dim,
        intermediate_size=ffn_dim,
        num_hidden_layers=layers,
        num_attention_heads=embed_dim // 64,
    )
    model = EsmcForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed_tokens" in name:
                parameter.normal_()
            else:
                size = large if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                parameter.normal_(std=size / math.sqrt(parameter.shape[1]))
    return model


@torch.no_grad()
def all_layers(model: EsmcForMaskedLM, sequence: str) -> dict[int, torch.Tensor]:
    """Every layer's representation, float32 [BOS + residues + EOS, embed_dim], of this sequence alone.

    transformers' `hidden_states` begin with the embedding and end after the last norm, as fair-esm's layers do.
    """
    tokens = TOKENIZER(sequence, return_tensors="pt")["input_ids"]
    return {layer: x[0] for layer, x in enumerate(model.esmc(tokens, output_hidden_states=True).hidden_states)}


@torch.no_grad()
def represent_fully(model: EsmcForMaskedLM, sequence: str) -> dict[tuple[int, str], np.ndarray]:
    """Every representation of every layer, by transformers' forward pass of this sequence alone."""
    layers = all_layers(model, sequence)
    result = reference.pool(layers) | {(layer, "per_tok"): x[1:-1].numpy() for layer, x in layers.items()}
    tokens = TOKENIZER(sequence, return_tensors="pt")["input_ids"]
    return result | {(max(layers), "logits"): model(tokens).logits[0, 1:-1].numpy()}


@torch.no_grad()
def logits(model: EsmcForMaskedLM, sequence: str, masked: int | None = None) -> torch.Tensor:
    """The head's output for the residues of this sequence alone, float32 [residues, 64], one of them masked or none."""
    tokens = TOKENIZER(sequence, return_tensors="pt")["input_ids"]
    if masked is not None:
        tokens[0, 1 + masked] = TOKENIZER.mask_token_id
    return model(tokens).logits[0, 1:-1]


def of_2024(model: EsmcForMaskedLM) -> State:
    """Its tensors under the names of the files of 2024."""
    state = model.state_dict()
    named = {
        "embed.weight": state["esmc.embed_tokens.weight"],
        "transformer.norm.weight": state["esmc.norm.weight"],
        **_head(state, "sequence_head"),
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"esmc.layers.{layer}.", f"transformer.blocks.{layer}."
        for part in ("weight", "bias"):
            named[f"{ours}attn.layernorm_qkv.0.{part}"] = state[f"{theirs}input_layernorm.{part}"]
            named[f"{ours}ffn.0.{part}"] = state[f"{theirs}post_attention_layernorm.{part}"]
        named[f"{ours}attn.layernorm_qkv.1.weight"] = _stacked(state, theirs, "self_attn", "qkv")
        named[f"{ours}ffn.1.weight"] = _stacked(state, theirs, "mlp", ("gate", "up"))
        named[f"{ours}ffn.3.weight"] = state[f"{theirs}mlp.down_proj.weight"]
        named |= _rest_of_attention(state, theirs, ours)
    return {name: tensor.clone() for name, tensor in named.items()}


def load_2024(model: EsmcForMaskedLM, named: State) -> None:
    """Give it a trunk's tensors that have the names of the files of 2024."""
    state = {"esmc.embed_tokens.weight": named["embed.weight"], "esmc.norm.weight": named["transformer.norm.weight"]}
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"transformer.blocks.{layer}.", f"esmc.layers.{layer}."
        for part in ("weight", "bias"):
            state[f"{ours}input_layernorm.{part}"] = named[f"{theirs}attn.layernorm_qkv.0.{part}"]
            state[f"{ours}post_attention_layernorm.{part}"] = named[f"{theirs}ffn.0.{part}"]
        for which, rows in zip("qkv", named[f"{theirs}attn.layernorm_qkv.1.weight"].chunk(3), strict=True):
            state[f"{ours}self_attn.{which}_proj.weight"] = rows
        for which, rows in zip(("gate", "up"), named[f"{theirs}ffn.1.weight"].chunk(2), strict=True):
            state[f"{ours}mlp.{which}_proj.weight"] = rows
        state[f"{ours}mlp.down_proj.weight"] = named[f"{theirs}ffn.3.weight"]
        for which, name in (("q_norm", "q_ln"), ("k_norm", "k_ln"), ("o_proj", "out_proj")):
            state[f"{ours}self_attn.{which}.weight"] = named[f"{theirs}attn.{name}.weight"]
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("lm_head.") for name in missing)


def of_biohub(model: EsmcForMaskedLM, prefix: str = "esmc.") -> State:
    """Its tensors under the names that TransformerEngine's fused modules give them, with its states of no numbers."""
    state = model.state_dict()
    named = {
        f"{prefix}embed.weight": state["esmc.embed_tokens.weight"],
        f"{prefix}transformer.norm.weight": state["esmc.norm.weight"],
        **_head(state, "lm_head"),
    }
    for layer in range(model.config.num_hidden_layers):
        theirs, ours = f"esmc.layers.{layer}.", f"{prefix}transformer.blocks.{layer}."
        for part in ("weight", "bias"):
            named[f"{ours}attn.layernorm_qkv.layer_norm_{part}"] = state[f"{theirs}input_layernorm.{part}"]
            named[f"{ours}ffn.layer_norm_{part}"] = state[f"{theirs}post_attention_layernorm.{part}"]
        named[f"{ours}attn.layernorm_qkv.weight"] = _stacked(state, theirs, "self_attn", "qkv")
        named[f"{ours}ffn.fc1_weight"] = _stacked(state, theirs, "mlp", ("gate", "up"))
        named[f"{ours}ffn.fc2_weight"] = state[f"{theirs}mlp.down_proj.weight"]
        named |= _rest_of_attention(state, theirs, ours)
        for module in ("attn.layernorm_qkv", "attn.out_proj", "ffn"):
            named[f"{ours}{module}._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    return {name: tensor.clone() for name, tensor in named.items()}


def _head(state: State, name: str) -> State:
    modules = {0: "dense", 2: "layer_norm", 3: "decoder"}
    return {
        f"{name}.{place}.{part}": state[f"lm_head.{module}.{part}"]
        for place, module in modules.items()
        for part in ("weight", "bias")
    }


def _stacked(state: State, layer: str, module: str, parts: str | tuple[str, ...]) -> torch.Tensor:
    return torch.cat([state[f"{layer}{module}.{part}_proj.weight"] for part in parts])


def _rest_of_attention(state: State, theirs: str, ours: str) -> State:
    return {
        f"{ours}attn.q_ln.weight": state[f"{theirs}self_attn.q_norm.weight"],
        f"{ours}attn.k_ln.weight": state[f"{theirs}self_attn.k_norm.weight"],
        f"{ours}attn.out_proj.weight": state[f"{theirs}self_attn.o_proj.weight"],
    }


def write(directory: Path, model: EsmcForMaskedLM, layout: str) -> Path:
    """Write it in a layout, and tell the path of the weights."""
    if layout == "2024":
        torch.save(of_2024(model), directory / "esmc.pth")
        return directory / "esmc.pth"
    if layout.startswith("biohub"):
        prefix = "esmc." if layout == "biohub" else ""
        save_file(of_biohub(model, prefix), directory / "model.safetensors")
        return directory
    if layout == "trunk":
        model.esmc.save_pretrained(directory)
    else:
        model.save_pretrained(directory, max_shard_size="200KB" if layout == "shards" else "50GB")
    return directory
