"""Checkpoints of official shapes with random weights, made where they are wanted; needs nothing but torch."""

from dataclasses import replace

import torch
from esmflow.architecture import Architecture
from esmflow.model.weights import Checkpoint


def esm2(layers: int, embed_dim: int, heads: int) -> Architecture:
    """An ESM-2 of that size."""
    return Architecture("ESM-2", layers, embed_dim, heads, 4 * embed_dim, True, None, lm_head=True, contact_head=True)


def esmc(layers: int, embed_dim: int, ffn_dim: int) -> Architecture:
    """An ESM-C of that size."""
    heads = embed_dim // 64
    more = {"lm_head": True, "contact_head": False, "vocabulary": 64}
    return Architecture("ESM-C", layers, embed_dim, heads, ffn_dim, token_dropout=False, max_residues=None, **more)


#: ESM-2 by the name of its size, and ESM-C; those of no published size are for where there is no GPU.
SHAPES = {
    "tiny": esm2(2, 64, 4),
    "8M": esm2(6, 320, 20),
    "150M": esm2(30, 640, 20),
    "650M": esm2(33, 1280, 20),
    "3B": esm2(36, 2560, 40),
    "ESMC-tiny": esmc(2, 128, 192),
    "ESMC-small": esmc(6, 320, 832),
    "ESMC-600M": esmc(36, 1152, 3072),
}


def shallow(shape: Architecture, layers: int) -> Architecture:
    """The same with at most so many layers."""
    return replace(shape, layers=min(shape.layers, layers))


def checkpoint(shape: Architecture, device: torch.device, seed: int = 0) -> Checkpoint:
    """Random weights under fair-esm's names, float32 on the device.

    Products keep the size of what goes into them, so that activations are of order one at any depth; biases and norms
    differ from element to element, so that one forgotten or misplaced shows.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def random(*size: int, scale: float, around: float = 0.0) -> torch.Tensor:
        return torch.empty(size, device=device).normal_(around, scale, generator=generator)

    dim, ffn, rows = shape.embed_dim, shape.ffn_dim, shape.vocabulary
    of_esmc = shape.kind == "ESM-C"
    tensors = {"embed_tokens.weight": random(rows, dim, scale=1)}

    def dense(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = random(outputs, inputs, scale=inputs**-0.5)
        if bias:
            tensors[f"{name}.bias"] = random(outputs, scale=0.1)

    def norm(name: str, *, bias: bool = True) -> None:
        tensors[f"{name}.weight"] = random(dim, scale=0.1, around=1)
        if bias:
            tensors[f"{name}.bias"] = random(dim, scale=0.1)

    # fair-esm's frequencies are rounded to fp16.
    frequencies = 10000 ** (-torch.arange(0, dim // shape.heads, 2, device=device) / (dim // shape.heads))
    feed_forward = (
        {"gate_proj": (dim, ffn), "up_proj": (dim, ffn), "down_proj": (ffn, dim)}
        if of_esmc
        else {"fc1": (dim, ffn), "fc2": (ffn, dim)}
    )
    for layer in range(shape.layers):
        name = f"layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            dense(f"{name}.self_attn.{projection}", dim, dim, bias=not of_esmc)
        for product, sizes in feed_forward.items():
            dense(f"{name}.{product}", *sizes, bias=not of_esmc)
        norm(f"{name}.self_attn_layer_norm")
        norm(f"{name}.final_layer_norm")
        if of_esmc:
            norm(f"{name}.self_attn.q_norm", bias=False)
            norm(f"{name}.self_attn.k_norm", bias=False)
        else:
            tensors[f"{name}.self_attn.rot_emb.inv_freq"] = frequencies.half().float()
    norm("emb_layer_norm_after", bias=not of_esmc)
    dense("lm_head.dense", dim, dim)
    norm("lm_head.layer_norm")
    tensors["lm_head.weight"] = random(rows, dim, scale=dim**-0.5) if of_esmc else tensors["embed_tokens.weight"]
    tensors["lm_head.bias"] = random(rows, scale=0.1)
    if shape.contact_head:
        tensors["contact_head.regression.weight"] = random(1, shape.layers * shape.heads, scale=1)
        tensors["contact_head.regression.bias"] = random(1, scale=0.1)
    return Checkpoint(shape, tensors)


def uniprot_like_lengths(count: int, seed: int = 0) -> list[int]:
    """Log-normal lengths with the median near 290 and the long tail of UniProt's, from 10 to 1,022 residues."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(count, dtype=torch.float64).log_normal_(5.67, 0.7, generator=generator)
    return [int(length) for length in drawn.clamp(10, 1022)]


def proteins(lengths: list[int], seed: int = 0) -> list[bytes]:
    """Random residues, as many as each length says."""
    letters = torch.frombuffer(bytearray(b"ACDEFGHIKLMNPQRSTVWY"), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    residues = letters[torch.randint(20, (sum(lengths),), generator=generator)]
    return [part.numpy().tobytes() for part in residues.split(lengths)]
