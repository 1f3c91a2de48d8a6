"""The reference: fair-esm's own modules, run in float32 on one sequence at a time."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import esm
import numpy as np
import torch
from esm.model.esm1 import ProteinBertModel
from esm.model.esm2 import ESM2

ALPHABET = esm.Alphabet.from_architecture("ESM-1b")
REPRESENTATIONS = ["mean", "bos", "max", "std"]


def hugging_face_names(layers: int) -> dict[str, str]:
    """fair-esm's name of each tensor, and Hugging Face's."""
    modules = {
        "embed_tokens": "esm.embeddings.word_embeddings",
        "embed_positions": "esm.embeddings.position_embeddings",
        "emb_layer_norm_before": "esm.embeddings.layer_norm",
        "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
        "contact_head.regression": "esm.contact_head.regression",
        "lm_head.dense": "lm_head.dense",
        "lm_head.layer_norm": "lm_head.layer_norm",
    }
    of_layer = {
        "self_attn.q_proj": "attention.self.query",
        "self_attn.k_proj": "attention.self.key",
        "self_attn.v_proj": "attention.self.value",
        "self_attn.out_proj": "attention.output.dense",
        "self_attn_layer_norm": "attention.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "final_layer_norm": "LayerNorm",
    }
    names = {"lm_head.weight": "lm_head.decoder.weight", "lm_head.bias": "lm_head.bias"}
    for layer in range(layers):
        ours, theirs = f"layers.{layer}.", f"esm.encoder.layer.{layer}."
        names[f"{ours}self_attn.rot_emb.inv_freq"] = f"{theirs}attention.self.rotary_embeddings.inv_freq"
        modules |= {ours + module: theirs + their_module for module, their_module in of_layer.items()}
    for module, their_module in modules.items():
        names |= {f"{module}.{kind}": f"{their_module}.{kind}" for kind in ("weight", "bias")}
    return names


def esm2_of_hugging_face(path: Path) -> ESM2:
    """fair-esm's ESM-2 with the weights, and the rotary frequencies, of a Hugging Face checkpoint."""
    state = torch.load(path, weights_only=True)
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("esm.encoder.layer."))
    embed_dim = state["esm.embeddings.word_embeddings.weight"].shape[1]
    names = hugging_face_names(layers)
    # A Hugging Face ESM-2 may hold learned positions, which it does not use.
    own = {ours: state[names[ours]] for ours in names if names[ours] in state and ours != "embed_positions.weight"}
    model = ESM2(layers, embed_dim, embed_dim // (2 * len(own["layers.0.self_attn.rot_emb.inv_freq"])), ALPHABET)
    missing, unexpected = model.load_state_dict(own, strict=False)
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
    torch.save({"cfg": {"model": settings}, "model": _prefixed(model)}, path)
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
    torch.save({"args": settings, "model": _prefixed(model)}, path)
    with torch.no_grad():
        # As fair-esm does when it loads such a file.
        model.embed_tokens.weight[ALPHABET.mask_idx].zero_()
    return model


def move_contact_head(path: Path) -> Path:
    """Put the contact head of a file in fair-esm's format where fair-esm keeps it, in a file beside it."""
    content = torch.load(path, weights_only=False)
    names = [name for name in content["model"] if "contact_head." in name]
    head = {name.removeprefix("encoder.sentence_encoder."): content["model"].pop(name) for name in names}
    beside = path.with_name(f"{path.stem}-contact-regression.pt")
    torch.save({"model": head}, beside)
    torch.save(content, path)
    return beside


def _prefixed(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state as fair-esm's files have it."""
    return {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in model.state_dict().items()
    }


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


def represent(model: torch.nn.Module, sequence: str) -> dict[tuple[int, str], np.ndarray]:
    """Every layer's pooled vectors, float32 [embed_dim], by fair-esm's forward pass of this sequence alone."""
    return pool(all_layers(model, sequence))


@torch.no_grad()
def represent_fully(
    model: torch.nn.Module, sequence: str, *, contacts: bool = True
) -> dict[tuple[int, str], np.ndarray]:
    """Every representation of every layer, by fair-esm's forward pass of this sequence alone."""
    _, _, tokens = ALPHABET.get_batch_converter()([("", sequence)])
    last = model.num_layers
    found = model(tokens, repr_layers=range(last + 1), return_contacts=contacts)
    layers = {layer: x[0] for layer, x in found["representations"].items()}
    result = pool(layers) | {(layer, "per_tok"): x[1:-1].numpy() for layer, x in layers.items()}
    result[last, "logits"] = found["logits"][0, 1:-1].numpy()
    if contacts:
        result[last, "contacts"] = found["contacts"][0].numpy()
    return result


@torch.no_grad()
def logits(model: torch.nn.Module, sequence: str, masked: int | None = None) -> torch.Tensor:
    """The head's output for the residues of this sequence alone, float32 [residues, 33], one of them masked or none."""
    _, _, tokens = ALPHABET.get_batch_converter()([("", sequence)])
    if masked is not None:
        tokens[0, 1 + masked] = ALPHABET.mask_idx
    return model(tokens)["logits"][0, 1:-1]


@torch.no_grad()
def represent_windows(
    model: torch.nn.Module,
    sequence: str,
    size: int,
    overlap: int,
    layers_of: Callable[[torch.nn.Module, str], dict[int, torch.Tensor]] = all_layers,
) -> dict[tuple[int, str], np.ndarray]:
    """The plain way: every window alone, each residue from the window in which it is furthest from an edge."""
    starts = [*range(0, len(sequence) - size, size - overlap), len(sequence) - size]
    runs = [layers_of(model, sequence[start : start + size]) for start in starts]
    depths = [
        [min(residue - start, start + size - 1 - residue) for start in starts] for residue in range(len(sequence))
    ]
    best = [depth.index(max(depth)) for depth in depths]
    result = {}
    for layer in runs[0]:
        bos = torch.stack([run[layer][0] for run in runs]).double().mean(0)
        rows = [runs[window][layer][1 + residue - starts[window]] for residue, window in enumerate(best)]
        stitched = torch.stack([bos.float(), *rows, bos.float()])
        result |= pool({layer: stitched}) | {(layer, "per_tok"): stitched[1:-1].numpy()}
    return result


def pool(layers: dict[int, torch.Tensor]) -> dict[tuple[int, str], np.ndarray]:
    """Vectors of layers that are [BOS + residues + EOS, embed_dim]."""
    result = {}
    for layer, x in layers.items():
        residues = x[1:-1].double()
        result[layer, "mean"] = residues.mean(0).numpy()
        result[layer, "bos"] = x[0].numpy()
        result[layer, "max"] = residues.max(0).values.numpy()
        result[layer, "std"] = residues.std(0, correction=0).numpy()
    return result
