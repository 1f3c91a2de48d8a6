"""From a pack to what is asked of its sequences: pooled vectors, residues, logits and contacts."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from esmflow.model import Esm, Pack
from esmflow.spec import VECTORS, Output

#: The results of pieces: for each a float32 array, [embed_dim] for vectors, [kept residues, embed_dim] for `per_tok`,
#: [kept residues, 33] for `logits` and [residues, residues] for `contacts`.
Pieces = dict[Output, list[np.ndarray]]


def represent(model: Esm, pack: Pack, outputs: Sequence[Output]) -> Pieces:
    """Run a pack through the model and take what is asked for, straight from each layer's packed tensor."""
    pack = pack.to(model.device)
    wanted = {layer: [o for o in outputs if o.layer == layer] for layer in {output.layer for output in outputs}}
    contacts = _Contacts(model, pack) if any(output.representation == "contacts" for output in outputs) else None
    result: Pieces = {}
    for layer, x in model.representations(pack, wanted, contacts.observe if contacts else None):
        pooled = pool(x, pack, [output.representation for output in wanted[layer]])
        for output in wanted[layer]:
            if output.representation in VECTORS:
                result[output] = list(pooled[output.representation].cpu().numpy())
            elif output.representation == "per_tok":
                result[output] = _split(x, pack)
            elif output.representation == "logits":
                result[output] = _split(model.logits(x), pack)
            elif contacts:
                result[output] = contacts.maps()
    return result


@torch.inference_mode()
def pool(x: torch.Tensor, pack: Pack, representations: Sequence[str]) -> dict[str, torch.Tensor]:
    """Pool a packed representation to one vector per sequence, by segment reduction.

    x: float32 [total tokens, embed_dim]. Returns float32 [sequences, embed_dim] for each of `mean`, `max`, `std`
    (population standard deviation) over the residues that the pack keeps, and `bos` (the vector of the BOS token).
    """
    begins, ends = pack.cu_seqlens[:-1].long(), pack.cu_seqlens[1:].long()
    # Each sequence is three segments: what comes before, the kept residues, what comes after. The middle is wanted.
    bounds = torch.cat([begins[:, None], pack.kept], dim=1).flatten()
    segments = torch.cat([bounds, ends[-1:]]).diff().to(x.device)

    def reduce(values: torch.Tensor, how: str) -> torch.Tensor:
        return torch.segment_reduce(values, how, lengths=segments, unsafe=True)[1::3]

    result = {}
    if "bos" in representations:
        result["bos"] = x[begins.to(x.device)]
    if "max" in representations:
        result["max"] = reduce(x, "max")
    if "mean" in representations or "std" in representations:
        mean = result["mean"] = reduce(x, "mean")
        if "std" in representations:
            lengths = (ends - begins).to(x.device)
            centred = x - mean.repeat_interleave(lengths, dim=0)
            # The second term is what rounding of the mean adds to the first (Chan et al. 1983, eq. 1.7).
            variance = reduce(centred.square(), "mean") - reduce(centred, "mean").square()
            result["std"] = variance.clamp_(min=0).sqrt_()
    return result


def combine(pieces: Pieces, output: Output, rows: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """What sequences have from what their pieces have, as if all kept residues had been together; bos is averaged.

    rows: the sequence of each piece, ascending; kept: how many residues each piece keeps.
    """
    firsts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    result = []
    for first, last in pairwise([*firsts, len(rows)]):
        parts = pieces[output][first:last]
        if len(parts) == 1:
            result.append(parts[0])
        elif output.ragged:
            result.append(np.concatenate(parts))
        else:
            means = pieces.get(Output(output.layer, "mean"), pieces[output])[first:last]
            weights = kept[first:last, None] / kept[first:last].sum()
            result.append(_pool_pieces(output.representation, np.array(parts), np.array(means), weights))
    return result


def _pool_pieces(representation: str, values: np.ndarray, means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One vector, float32 [embed_dim], from those of pieces, float32 [pieces, embed_dim], and the pieces' weights."""
    values, means = values.astype(np.float64), means.astype(np.float64)
    if representation == "max":
        pooled = values.max(axis=0)
    elif representation == "bos":
        pooled = values.mean(axis=0)
    elif representation == "mean":
        pooled = (weights * values).sum(axis=0)
    else:
        between = means - (weights * means).sum(axis=0)
        pooled = np.sqrt((weights * (values**2 + between**2)).sum(axis=0))
    result: np.ndarray = pooled.astype(np.float32)
    return result


def _split(x: torch.Tensor, pack: Pack) -> list[np.ndarray]:
    """The rows of each sequence's kept residues."""
    rows = x.cpu().numpy()
    return [rows[first:last] for first, last in pack.kept.tolist()]


class _Contacts:
    """fair-esm's contact head, summed layer by layer so that no attention map outlives its layer.

    Attention between residues is symmetrised and corrected by the average product (Dunn et al. 2008,
    doi:10.1093/bioinformatics/btm604), then goes through a logistic regression (Rao et al. 2020,
    doi:10.1101/2020.12.15.422761; `esm.modules.ContactPredictionHead`).
    """

    def __init__(self, model: Esm, pack: Pack) -> None:
        self._weights, self._bias = model.contact_regression
        self._ranges = list(pairwise(pack.cu_seqlens.tolist()))
        self._sums: list[torch.Tensor | float] = [0.0] * len(self._ranges)

    @torch.inference_mode()
    def observe(self, layer: int, qkv: torch.Tensor) -> None:
        for number, (begin, end) in enumerate(self._ranges):
            q, k = qkv[begin:end, :2].float().permute(1, 2, 0, 3)
            attention = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[:, 1:-1, 1:-1]
            both = attention + attention.transpose(1, 2)
            product = both.sum(-1, keepdim=True) * both.sum(-2, keepdim=True) / both.sum((-1, -2), keepdim=True)
            self._sums[number] += torch.tensordot(self._weights[layer - 1], both - product, dims=1)

    def maps(self) -> list[np.ndarray]:
        return [torch.sigmoid(total + self._bias).cpu().numpy() for total in self._sums]
