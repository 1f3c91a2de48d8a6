"""Other programs in the GPU benchmark: transformers and fair-esm, with random weights of the same shape."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from esmflow.alphabet import BOS, EOS, TOKENS
from esmflow.architecture import Architecture
from forward import pad, padded_batches
from measure import MAX_RESIDUES

if TYPE_CHECKING:
    from gpu import Bench

FAIR_ESM_BUDGET = 4096


def transformers_model(shape: Architecture) -> Any:
    """The model of that shape, with sdpa as its attention."""
    size = {
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn_dim,
        "vocab_size": shape.vocabulary,
        "attn_implementation": "sdpa",
    }
    if shape.kind == "ESM-C":
        # Older versions of transformers have none.
        from transformers import EsmcConfig, EsmcModel

        return EsmcModel(EsmcConfig(**size))
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        mask_token_id=TOKENS.index("<mask>"),
        pad_token_id=TOKENS.index("<pad>"),
        position_embedding_type="rotary",
        token_dropout=True,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **size,
    )
    return EsmModel(config, add_pooling_layer=False)


@torch.inference_mode()
def transformers(
    bench: "Bench", shape: Architecture, sequences: Sequence[bytes], *, compiled: bool
) -> Iterator[tuple[int, float]]:
    """Length-sorted padded batches: (tokens of a batch, seconds) for several sizes."""
    model = transformers_model(shape).to(bench.device, bench.dtype).eval()
    if compiled:
        model = torch.compile(model, dynamic=True)
    numbers = {ord(letter): number for number, letter in enumerate(TOKENS) if len(letter) == 1}
    encoded = [[BOS, *(numbers[letter] for letter in sequence), EOS] for sequence in sequences]

    def embed(padded: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        means = []
        for batch, kept in padded:
            tokens, mask = batch.to(bench.device, non_blocking=True), kept.to(bench.device, non_blocking=True)
            hidden = model(tokens, attention_mask=mask).last_hidden_state
            weight = (mask * (tokens != BOS) * (tokens != EOS))[..., None].float()
            means.append((hidden * weight).sum(1) / weight.sum(1))
        torch.cat(means).cpu()

    for budget in bench.options.tokens:
        padded = [pad([encoded[row] for row in rows]) for rows in padded_batches([len(t) for t in encoded], budget)]
        try:
            embed(padded[::10])
            yield budget, bench.seconds(lambda batches=padded: embed(batches))  # type: ignore[misc]
        except torch.OutOfMemoryError:
            break


@torch.no_grad()
def fair_esm(bench: "Bench", shape: Architecture, sequences: Sequence[bytes]) -> float:
    """Seconds of fair-esm's module in float32 on padded batches of 4,096 tokens, as its extraction script has them."""
    import esm

    alphabet = esm.Alphabet.from_architecture("ESM-1b")
    model = esm.ESM2(shape.layers, shape.embed_dim, shape.heads, alphabet).to(bench.device).eval()
    strings = [sequence.decode() for sequence in sequences]
    dataset = esm.FastaBatchedDataset(range(len(strings)), strings)
    convert = alphabet.get_batch_converter(MAX_RESIDUES)
    batches = [
        convert([dataset[row] for row in rows])
        for rows in dataset.get_batch_indices(FAIR_ESM_BUDGET, extra_toks_per_seq=1)
    ]

    def embed(some: Sequence[Any]) -> None:
        for _, texts, tokens in some:
            representations = model(tokens.to(bench.device), repr_layers=[shape.layers])["representations"]
            hidden = representations[shape.layers].cpu()
            for row, text in enumerate(texts):
                hidden[row, 1 : len(text) + 1].mean(0)

    embed(batches[::10])
    return bench.seconds(lambda: embed(batches))
