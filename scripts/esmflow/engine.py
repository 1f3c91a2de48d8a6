"""The engine: sequences in, representations out, through packs of a fixed token budget."""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch

from esmflow.errors import DeviceError
from esmflow.model import Esm, Pack
from esmflow.represent import Pieces, combine, represent
from esmflow.spec import WHOLE, Output
from esmflow.treatment import cost
from esmflow.treatment import pieces as cut

#: Tokens per pack if none are asked for. On a CPU a pack should stay in the cache, on a GPU fill the device.
AUTO_TOKENS = {"cpu": 2048, "cuda": 32768}
_NOTHING = np.empty(0, dtype=np.float32)
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
    """What some sequences have, row by row."""

    values: dict[Output, list[np.ndarray]]
    """For each output and sequence a float32 array: [embed_dim] for vectors, [residues, embed_dim] for `per_tok`,
    [residues, 33] for `logits`, [residues, residues] for `contacts`. Not to be used where there is a reason."""
    reasons: list[str | None]
    """Why a sequence has nothing; None for those that have all."""


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
        results: Pieces = {output: [_NOTHING] * len(pieces) for output in wanted}
        reasons: list[str | None] = [None] * len(sequences)
        depth = max(output.layer for output in outputs)

        def forward(members: np.ndarray, model: Esm) -> Pieces:
            chosen = [pieces[member] for member in members]
            pack = Pack.of(
                [sequences[row][piece.start : piece.stop] for row, piece in chosen],
                [(piece.keep_start - piece.start, piece.keep_stop - piece.start) for _, piece in chosen],
            )
            return represent(model, pack, wanted)

        pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for members, result in zip(packs, pool.map(forward, packs, repeat(self.model)), strict=True):
                for place, member in enumerate(members):
                    found = {output: values[place] for output, values in result.items()}
                    if not _finite(found):
                        alone = forward(np.array([member]), self._float32())
                        found = {output: values[0] for output, values in alone.items()}
                        if not _finite(found):
                            reasons[rows[member]] = "non-finite representation"
                    for output, value in found.items():
                        results[output][member] = value
                if progress:
                    first = sum(pieces[member][1].start == 0 for member in members)
                    progress(first, int(kept[members].sum()), float(shape.flops(tokens[members], depth).sum()))
        finally:
            pool.shutdown(cancel_futures=True)
        combined = {output: combine(results, output, rows, kept) for output in outputs}
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
            again = alone.embed([sequences[row]], outputs, treatment).values
            for output in outputs:
                found = embedded.values[output][row].ravel().astype(np.float64)
                expected = again[output][0].ravel().astype(np.float64)
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


def _finite(found: Mapping[Output, np.ndarray]) -> bool:
    return all(np.isfinite(value).all() for value in found.values())


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
