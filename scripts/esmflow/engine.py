"""The engine: sequences in, pooled vectors out, through packs of a fixed token budget."""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, repeat

import numpy as np
import torch

from esmflow.errors import DeviceError
from esmflow.model import Esm, Pack
from esmflow.spec import WHOLE, Output
from esmflow.treatment import cost
from esmflow.treatment import pieces as cut

#: Tokens per pack if none are asked for. On a CPU a pack should stay in the cache, on a GPU fill the device.
AUTO_TOKENS = {"cpu": 2048, "cuda": 32768}
#: The cosine to float32 that each precision is to keep.
LEAST_COSINE = {"fp16": 0.9999, "bf16": 0.999}


@dataclass
class Figures:
    """What an engine has done so far."""

    sequences: int = 0
    residues: int = 0
    tokens: int = 0
    packs: int = 0
    pack_capacity: int = 0
    """Tokens that the packs could have held: their budget, or more for a single long sequence."""
    last_pack_free: int = 0
    """Free tokens in the last, partly filled packs: one for each call of `embed`."""
    seconds: float = 0.0

    @property
    def fill(self) -> float:
        """Share of the packs' capacity that was filled, but for the last pack of each call."""
        return self.tokens / max(self.pack_capacity - self.last_pack_free, 1)


@dataclass(frozen=True)
class Embedded:
    """The vectors of some sequences, row by row."""

    vectors: dict[Output, np.ndarray]
    """float32 [sequences, embed_dim] for each output; NaN where there is a reason."""
    reasons: list[str | None]
    """Why a sequence has no vectors; None for those that have them."""


@dataclass(frozen=True)
class SelfCheck:
    """How far vectors were from the same sequences embedded alone in float32."""

    sequences: int
    largest_difference: float
    """Relative L2 error, the largest of all outputs and sequences."""
    least_cosine: float


class Engine:
    """Embeds sequences with one model.

    On a CPU, `threads` packs are computed side by side, each by one thread: packs need no synchronisation, so
    this keeps every core busier than sharing each operation among the cores would.

    `exact` gives the same model in float32, for what is not finite in 16 bit; it is called when it is first needed.
    """

    def __init__(
        self,
        model: Esm,
        *,
        tokens_per_pack: int | None = None,
        threads: int = 1,
        exact: Callable[[], Esm] | None = None,
    ) -> None:
        self.model = model
        self._exact = exact
        self._exact_model: Esm | None = None
        self.tokens_per_pack = tokens_per_pack or AUTO_TOKENS[model.device.type]
        self.figures = Figures()
        self._threads = threads if model.device.type == "cpu" else 1

    def embed(
        self,
        sequences: Sequence[bytes],
        outputs: Sequence[Output],
        treatment: str = WHOLE,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> Embedded:
        """Embed sequences (upper-case residue letters, at least one each) under a treatment.

        `progress` is called for each finished pack with its sequences, residues and FLOPs. A piece whose vectors are
        not finite is computed again, alone and in float32, and if they still are not, its sequence gets a reason.
        """
        start = time.perf_counter()
        shape = self.model.architecture
        pieces = [(row, piece) for row, residues in enumerate(sequences) for piece in cut(len(residues), treatment)]
        rows = np.array([row for row, _ in pieces], dtype=np.int64)
        tokens = np.array([piece.stop - piece.start + 2 for _, piece in pieces], dtype=np.int64)
        kept = np.array([piece.keep_stop - piece.keep_start for _, piece in pieces], dtype=np.int64)
        packs = plan_packs(tokens, self.tokens_per_pack)
        # The std of a sequence in several pieces needs their means.
        wanted = sorted({*outputs, *(Output(o.layer, "mean") for o in outputs if o.representation == "std")})
        vectors = {output: np.full((len(pieces), shape.embed_dim), np.nan, dtype=np.float32) for output in wanted}
        reasons: list[str | None] = [None] * len(sequences)
        depth = max(output.layer for output in outputs)

        def forward(members: np.ndarray, model: Esm) -> dict[Output, np.ndarray]:
            chosen = [pieces[member] for member in members]
            pack = Pack.of(
                [sequences[row][piece.start : piece.stop] for row, piece in chosen],
                [(piece.keep_start - piece.start, piece.keep_stop - piece.start) for _, piece in chosen],
            )
            return _forward(model, pack, wanted)

        pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for members, result in zip(packs, pool.map(forward, packs, repeat(self.model)), strict=True):
                for output, values in result.items():
                    vectors[output][members] = values
                for member in members[~_finite(result)]:
                    alone = forward(np.array([member]), self._float32())
                    for output, values in alone.items():
                        vectors[output][member] = values[0]
                    if not _finite(alone).all():
                        reasons[rows[member]] = "non-finite representation"
                if progress:
                    first = sum(pieces[member][1].start == 0 for member in members)
                    progress(first, int(kept[members].sum()), float(shape.flops(tokens[members], depth).sum()))
        finally:
            pool.shutdown(cancel_futures=True)
        combined = {output: _combine(vectors, output, rows, kept) for output in outputs}
        for values in combined.values():
            values[[reason is not None for reason in reasons]] = np.nan
        self._count(len(sequences), int(kept.sum()), tokens, packs, time.perf_counter() - start)
        return Embedded(combined, reasons)

    def check(
        self, sequences: Sequence[bytes], outputs: Sequence[Output], treatment: str, embedded: Embedded
    ) -> SelfCheck:
        """Embed a sample of the sequences again, each alone and in float32, and compare.

        The sample is random, of about 1 % of the cost and at least one sequence. Raises DeviceError if a vector is
        further from its second computation than its precision explains: the device or its libraries are at fault.
        """
        alone = Engine(self._float32(), tokens_per_pack=self.tokens_per_pack)
        lengths = np.array([len(residues) for residues in sequences])
        order = np.random.default_rng(0).permutation(np.flatnonzero([reason is None for reason in embedded.reasons]))
        costs = cost(self.model.architecture, lengths, treatment, 1)
        sample = order[: 1 + int(np.searchsorted(costs[order].cumsum(), costs.sum() / 100))]
        difference, cosine = 0.0, 1.0
        for row in sample:
            again = alone.embed([sequences[row]], outputs, treatment).vectors
            for output in outputs:
                found, expected = embedded.vectors[output][row].astype(np.float64), again[output][0].astype(np.float64)
                # A single residue has a std of 0, of which there is nothing to compare.
                if size := np.linalg.norm(expected):
                    difference = max(difference, float(np.linalg.norm(found - expected) / size))
                    cosine = min(cosine, float(found @ expected / size / max(np.linalg.norm(found), 1e-30)))
        if difference > 1e-4 and (self.model.precision == "fp32" or cosine < LEAST_COSINE[self.model.precision]):
            raise DeviceError(
                f"self-check on {self.model.device} failed: a vector differs from the same computed alone by "
                f"{difference:.1e} (cosine {cosine:.6f}); use another device, or 'precision: fp32'"
            )
        return SelfCheck(len(sample), difference, cosine)

    def _float32(self) -> Esm:
        if self.model.precision != "fp32" and self._exact:
            self._exact_model = self._exact_model or self._exact()
            return self._exact_model
        return self.model

    def _count(
        self, sequences: int, residues: int, tokens: np.ndarray, packs: list[np.ndarray], seconds: float
    ) -> None:
        used = [int(tokens[members].sum()) for members in packs]
        capacity = [max(self.tokens_per_pack, tokens_used) for tokens_used in used]
        self.figures.sequences += sequences
        self.figures.residues += residues
        self.figures.tokens += int(tokens.sum())
        self.figures.packs += len(packs)
        self.figures.pack_capacity += sum(capacity)
        self.figures.last_pack_free += max((c - u for c, u in zip(capacity, used, strict=True)), default=0)
        self.figures.seconds += seconds


def _forward(model: Esm, pack: Pack, outputs: Sequence[Output]) -> dict[Output, np.ndarray]:
    pack = pack.to(model.device)
    wanted = {layer: [o for o in outputs if o.layer == layer] for layer in {output.layer for output in outputs}}
    result: dict[Output, np.ndarray] = {}
    for layer, x in model.representations(pack, wanted):
        pooled = pool(x, pack, [output.representation for output in wanted[layer]])
        result |= {output: pooled[output.representation].cpu().numpy() for output in wanted[layer]}
    return result


def _finite(vectors: Mapping[Output, np.ndarray]) -> np.ndarray:
    """bool [pieces]: all vectors of the piece are finite."""
    finite: np.ndarray = np.all([np.isfinite(values).all(axis=1) for values in vectors.values()], axis=0)
    return finite


def _combine(vectors: Mapping[Output, np.ndarray], output: Output, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The vectors of sequences from those of their pieces, as if pooled over all kept residues; bos is averaged.

    vectors: float32 [pieces, embed_dim]; rows: the sequence of each piece, ascending; kept: how many residues it keeps.
    Returns float32 [sequences, embed_dim].
    """
    firsts = np.flatnonzero(np.diff(rows, prepend=-1))
    result: np.ndarray = vectors[output][firsts]
    for row, (first, last) in enumerate(pairwise([*firsts.tolist(), len(rows)])):
        if last - first == 1:
            continue
        values = vectors[output][first:last].astype(np.float64)
        weights = kept[first:last, None] / kept[first:last].sum()
        if output.representation == "mean":
            result[row] = (weights * values).sum(axis=0)
        elif output.representation == "bos":
            result[row] = values.mean(axis=0)
        elif output.representation == "max":
            result[row] = values.max(axis=0)
        else:
            means = vectors[Output(output.layer, "mean")][first:last].astype(np.float64)
            between = means - (weights * means).sum(axis=0)
            result[row] = np.sqrt((weights * (values**2 + between**2)).sum(axis=0))
    return result


def choose_device(name: str) -> torch.device:
    """The device `name` ('auto', 'cpu', 'cuda' or 'cuda:N'). Raises DeviceError if it is not usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name}: no usable CUDA device on this machine; ask for a GPU or use --device cpu")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """What computes at a configured precision: itself, or for `auto` fp16 on a GPU and fp32 on a CPU."""
    if name != "auto":
        return name
    return "fp16" if device.type == "cuda" else "fp32"


def plan_packs(tokens: np.ndarray, budget: int) -> list[np.ndarray]:
    """Divide sequences into packs of at most `budget` tokens (best fit decreasing), longest sequences first.

    tokens: int64 [sequences]. Returns row numbers for each pack; rows of a pack are in order of falling length. A
    sequence longer than the budget gets a pack of its own.
    """
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for row in np.argsort(-tokens, kind="stable").tolist():
        length = int(tokens[row])
        fit = bisect_left(free, (length, 0))
        if fit < len(free):
            space, number = free.pop(fit)
            packs[number].append(row)
        else:
            space, number = budget, len(packs)
            packs.append([row])
        if space > length:
            insort(free, (space - length, number))
    return [np.array(rows) for rows in packs]


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
