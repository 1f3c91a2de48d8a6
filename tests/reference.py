"""The reference: fair-esm's own modules, run in float32 on one sequence at a time."""

from argparse import Namespace
from pathlib import Path

import esm
import numpy as np
import torch
from esm.model.esm1 import ProteinBertModel
from esm.model.esm2 import ESM2

ALPHABET = esm.Alphabet.from_architecture("ESM-1b")
REPRESENTATIONS = ["mean", "bos", "max", "std"]


def esm2_of_hugging_face(path: Path) -> ESM2:
    """fair-esm's ESM-2 with the weights, and the rotary frequencies, of a Hugging Face checkpoint."""
    state = torch.load(path, weights_only=True)
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("esm.encoder.layer."))
    embed_dim = state["esm.embeddings.word_embeddings.weight"].shape[1]
    prefix = "esm.encoder.layer."
    frequencies = state[f"{prefix}0.attention.self.rotary_embeddings.inv_freq"]
    model = ESM2(layers, embed_dim, embed_dim // (2 * len(frequencies)), ALPHABET)
    own = {
        "embed_tokens.weight": "esm.embeddings.word_embeddings.weight",
        "contact_head.regression.weight": "esm.contact_head.regression.weight",
        "contact_head.regression.bias": "esm.contact_head.regression.bias",
    }
    parts = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    for kind in ("weight", "bias"):
        own[f"emb_layer_norm_after.{kind}"] = f"esm.encoder.emb_layer_norm_after.{kind}"
        for layer in range(layers):
            own |= {
                f"layers.{layer}.{ours}.{kind}": f"{prefix}{layer}.{theirs}.{kind}" for ours, theirs in parts.items()
            }
    for layer in range(layers):
        own[f"layers.{layer}.self_attn.rot_emb.inv_freq"] = f"{prefix}{layer}.attention.self.rotary_embeddings.inv_freq"
    missing, unexpected = model.load_state_dict({ours: state[theirs] for ours, theirs in own.items()}, strict=False)
    assert not unexpected
    assert all(name.startswith("lm_head") for name in missing)
    return model.eval()


def tiny_esm2(path: Path, *, layers: int = 3, embed_dim: int = 48, heads: int = 4, seed: int = 0) -> ESM2:
    """A random ESM-2, written to `path` in fair-esm's file format, its frequencies rounded to fp16 as the official."""
    torch.manual_seed(seed)
    model = ESM2(layers, embed_dim, heads, ALPHABET).eval()
    _randomise(model)
    for layer in model.layers:
        layer.self_attn.rot_emb.inv_freq = layer.self_attn.rot_emb.inv_freq.half().float()
    settings = Namespace(
        encoder_layers=layers, encoder_embed_dim=embed_dim, encoder_attention_heads=heads, token_dropout=True
    )
    state = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"cfg": {"model": settings}, "model": state}, path)
    return model


def tiny_esm1b(
    path: Path, *, layers: int = 2, embed_dim: int = 32, heads: int = 4, norm_before: bool = True, seed: int = 0
) -> ProteinBertModel:
    """A random ESM-1b (or, without the LayerNorm before, of the kind of some ESM-1v) in fair-esm's file format."""
    torch.manual_seed(seed)
    settings = Namespace(
        arch="roberta_large",
        layers=layers,
        embed_dim=embed_dim,
        ffn_embed_dim=4 * embed_dim,
        attention_heads=heads,
        max_positions=1024,
        token_dropout=True,
        emb_layer_norm_before=norm_before,
    )
    model = ProteinBertModel(settings, ALPHABET).eval()
    _randomise(model)
    state = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"args": settings, "model": state}, path)
    return model


def _randomise(model: torch.nn.Module) -> None:
    """Give norms and biases values that a wrong order or a forgotten term would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)


@torch.no_grad()
def all_layers(model: torch.nn.Module, sequence: str) -> dict[int, torch.Tensor]:
    """Every layer's representation, float32 [BOS + residues + EOS, embed_dim], of this sequence alone."""
    _, _, tokens = ALPHABET.get_batch_converter()([("", sequence)])
    layers = range(model.num_layers + 1)
    return {layer: x[0] for layer, x in model(tokens, repr_layers=layers)["representations"].items()}


@torch.no_grad()
def represent(model: torch.nn.Module, sequence: str) -> dict[tuple[int, str], np.ndarray]:
    """Every layer's pooled vectors, float32 [embed_dim], by fair-esm's forward pass of this sequence alone."""
    result = {}
    for layer, x in all_layers(model, sequence).items():
        residues = x[1:-1].double()
        result[layer, "mean"] = residues.mean(0).numpy()
        result[layer, "bos"] = x[0].numpy()
        result[layer, "max"] = residues.max(0).values.numpy()
        result[layer, "std"] = residues.std(0, correction=0).numpy()
    return result
