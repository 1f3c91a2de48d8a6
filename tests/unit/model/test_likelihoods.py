"""Likelihood outputs against plain lines over fair-esm's modules, and for ESM-C over transformers'."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_esmc as esmc
import torch
from esmflow.engine.engine import Engine
from esmflow.masking import masked_copies
from esmflow.model import weights
from esmflow.model.likelihoods import Likelihoods
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.treatment import MASKED, WHOLE, Treatment
from random_residues import LETTERS, residues
from workflow import FULL_SIZE

ABSOLUTE = 1e-4


SEQUENCES = ["M", "XBZUO", residues(40), residues(130, seed=1, letters=LETTERS + "X")]


@dataclass(frozen=True)
class Tiny:
    """A random checkpoint, and its own program's logits of a sequence: float32 [residues, vocabulary]."""

    path: Path
    logits: Callable[..., torch.Tensor]
    vocabulary: Callable[[str], int]
    layers: int

    def log_p(self, sequence: str, masked: int | None = None) -> np.ndarray:
        """log p of the 20 letters at each residue: float64 [residues, 20]."""
        found = torch.log_softmax(self.logits(sequence, masked).double(), -1)
        return found[:, [self.vocabulary(letter) for letter in LETTERS]].numpy()

    def engine(self) -> Engine:
        return Engine(Esm(weights.read(weights.weight_files(self.path)), torch.device("cpu")), tokens_per_pack=300)

    def output(self, name: str) -> Output:
        return Output(self.layers, name)


@pytest.fixture(scope="module", params=["esm2", "esm1b", "esm1v", "esmc"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "esmc":
        model = esmc.tiny_esmc()
        path = esmc.write(directory, model, "2024")
        return Tiny(path, lambda *of: esmc.logits(model, *of), esmc.TOKENIZER.convert_tokens_to_ids, 3)
    path = directory / "tiny.pt"
    if request.param == "esm2":
        fair = reference.tiny_esm2(path)
    else:
        fair = reference.tiny_esm1b(path, layers=3, norm_before=request.param == "esm1b")
    return Tiny(path, lambda *of: reference.logits(fair, *of), reference.ALPHABET.get_idx, 3)


def marginals(log_p: np.ndarray, sequence: str) -> np.ndarray:
    """The plain way, residue by residue."""
    rows = []
    for row, letter in zip(log_p, sequence, strict=True):
        own = row[LETTERS.index(letter)] if letter in LETTERS else np.log(np.mean(np.exp(row)))
        rows.append(row - own)
    return np.array(rows)


def entropies(log_p: np.ndarray) -> np.ndarray:
    p = np.exp(log_p) / np.exp(log_p).sum(1, keepdims=True)
    return -(p * np.log(p)).sum(1)


def furthest_from_an_edge(length: int, size: int, overlap: int) -> list[int]:
    """For each residue the start of the window in which it lies furthest from an edge."""
    starts = [*range(0, length - size, size - overlap), length - size] if length > size else [0]
    return [max(starts, key=lambda start: min(i - start, start + size - 1 - i)) for i in range(length)]


def test_wt_marginals_and_entropy_equal_plain_lines_over_the_reference(tiny: Tiny) -> None:
    outputs = [tiny.output("entropy"), tiny.output("wt_marginals")]
    found = tiny.engine().embed([sequence.encode() for sequence in SEQUENCES], outputs)
    assert found.reasons == [None] * len(SEQUENCES)
    for row, sequence in enumerate(SEQUENCES):
        log_p = tiny.log_p(sequence)
        entropy, wt_marginals = (found.values[output][row] for output in outputs)
        assert entropy.shape == (len(sequence),)
        assert wt_marginals.shape == (len(sequence), 20)
        assert np.abs(entropy - entropies(log_p)).max() <= ABSOLUTE
        assert np.abs(wt_marginals - marginals(log_p, sequence)).max() <= ABSOLUTE


def test_a_residue_in_windows_is_read_from_the_text_of_the_window_that_it_lies_deepest_in(tiny: Tiny) -> None:
    size, overlap, sequence = 50, 20, residues(133, seed=2)
    outputs = [tiny.output("entropy"), tiny.output("wt_marginals")]
    found = tiny.engine().embed([sequence.encode()], outputs, Treatment("window", size, overlap))
    starts = furthest_from_an_edge(len(sequence), size, overlap)
    windows = {start: tiny.log_p(sequence[start : start + size]) for start in set(starts)}
    log_p = np.array([windows[start][i - start] for i, start in enumerate(starts)])
    assert np.abs(found.values[outputs[0]][0] - entropies(log_p)).max() <= ABSOLUTE
    assert np.abs(found.values[outputs[1]][0] - marginals(log_p, sequence)).max() <= ABSOLUTE


def test_a_masked_copy_gives_what_masking_by_hand_does_alone_and_in_any_pack(tiny: Tiny, uniprot: list[str]) -> None:
    real = random.Random(4).sample([protein for protein in sorted(set(uniprot)) if 30 <= len(protein) <= 250], 30)
    copies = [
        (sequence, position, copy)
        for sequence in [*SEQUENCES[:3], *(real if FULL_SIZE else [])]
        for position, copy in enumerate(masked_copies(sequence.encode(), WHOLE, range(len(sequence))))
    ]
    random.Random(0).shuffle(copies)
    plain = b"MKTAYIAKQR"
    masked, entropy = tiny.output("masked"), tiny.output("entropy")
    found = tiny.engine().embed([copy for *_, copy in copies], [masked], MASKED)
    for value, (sequence, position, _) in zip(found.values[masked], copies, strict=True):
        assert value.shape == (20,)
        assert np.abs(value - tiny.log_p(sequence, position)[position]).max() <= ABSOLUTE
    # A mask in one sequence of a pack changes no other.
    beside = tiny.engine().embed([plain, copies[0][-1]], [entropy], WHOLE).values[entropy][0]
    assert np.abs(beside - entropies(tiny.log_p(plain.decode()))).max() <= ABSOLUTE


def test_a_masked_copy_of_a_long_protein_is_of_the_window_that_the_position_lies_deepest_in(tiny: Tiny) -> None:
    size, overlap, sequence = 50, 20, residues(133, seed=2)
    positions = [0, 33, 34, 35, 36, 66, 132]
    copies = list(masked_copies(sequence.encode(), Treatment("window", size, overlap), positions))
    [found] = tiny.engine().embed(copies, [tiny.output("masked")], MASKED).values.values()
    starts = furthest_from_an_edge(len(sequence), size, overlap)
    for value, position in zip(found, positions, strict=True):
        start = starts[position]
        log_p = tiny.log_p(sequence[start : start + size], position - start)
        assert np.abs(value - log_p[position - start]).max() <= ABSOLUTE


def test_the_sums_of_likelihoods_are_those_of_the_plain_lines_whole_and_in_windows(tiny: Tiny) -> None:
    size, overlap, sequence = 50, 20, residues(133, seed=3, letters=LETTERS + "X")
    output = tiny.output("likelihoods")
    [windowed] = tiny.engine().embed([sequence.encode()], [output], Treatment("window", size, overlap)).values[output]
    starts = furthest_from_an_edge(len(sequence), size, overlap)
    windows = {start: tiny.log_p(sequence[start : start + size]) for start in set(starts)}
    log_p = np.array([windows[start][i - start] for i, start in enumerate(starts)])
    [whole] = tiny.engine().embed([sequence.encode()], [output]).values[output]
    for value, expected in ((whole, tiny.log_p(sequence)), (windowed, log_p)):
        own = [row[LETTERS.index(letter)] for row, letter in zip(expected, sequence, strict=True) if letter != "X"]
        assert value.tolist() == pytest.approx([sum(own), len(own), entropies(expected).sum()], rel=1e-5)


def test_a_model_that_is_sure_has_an_entropy_that_is_more_than_rounding() -> None:
    """Two letters, of which one is e^25 times as likely: entropy is about (25 + 1) e^-25."""
    logits = torch.full((1, 33), -200.0)
    logits[0, [reference.ALPHABET.get_idx("A"), reference.ALPHABET.get_idx("C")]] = torch.tensor([0.0, -25.0])
    [entropy] = Likelihoods(logits, torch.tensor([5])).entropy.tolist()
    assert entropy == pytest.approx(26 * np.exp(-25), rel=1e-4)
