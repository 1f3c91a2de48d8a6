"""16 bit, and the choice of precision and attention kernel."""

import logging
import random
import re
from pathlib import Path

import numpy as np
import pytest
import random_weights
import reference
import torch
from esmflow.engine.engine import Engine
from esmflow.engine.self_check import self_check
from esmflow.engine.task import Embedded
from esmflow.errors import DeviceError
from esmflow.model import weights
from esmflow.model.attention import choose
from esmflow.model.pack import Pack
from esmflow.model.trunk import DTYPES, Esm
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import Output
from esmflow.treatment import WHOLE
from esmflow.worker.process import load_engine

CPU = torch.device("cpu")


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.parametrize("as_on_a_gpu", [False, True])
@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.9999), ("bf16", 0.999)])
def test_16_bit_keeps_its_bound_in_every_layer(
    esm2_8m: Path, uniprot: list[str], precision: str, bound: float, as_on_a_gpu: bool
) -> None:
    sequences = [sequence[:100] for sequence in random.Random(8).sample(uniprot, 4)]
    outputs = [Output(layer, name) for layer in range(7) for name in reference.REPRESENTATIONS]
    model = Esm(weights.read([esm2_8m]), CPU, precision=precision)
    if as_on_a_gpu:
        model.attention_dtype = DTYPES[precision]
    engine = Engine(model, threads=2)
    vectors = engine.embed([sequence.encode() for sequence in sequences], outputs).values
    theirs = reference.esm2_of_hugging_face(esm2_8m)
    for row, sequence in enumerate(sequences):
        expected = reference.represent(theirs, sequence)
        assert min(cosine(vectors[output][row], expected[output]) for output in outputs) >= bound


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_cpu_attends_in_float32_and_says_how_fast_its_products_are(
    esm2_8m: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    checkpoint = weights.read([esm2_8m])
    descriptor = Descriptor("m", [str(esm2_8m)], [], "ab" * 32, checkpoint.architecture)
    model = PlannedModel(ModelSpec("m", (1,), ("mean",), "skip", 1022, 0, precision), descriptor)
    with caplog.at_level(logging.INFO):
        engine = load_engine(model, precision, CPU, 1, None)
    seen: list[torch.dtype] = []
    list(engine.model.representations(Pack.of([b"MKTAYIAK"]), [1], lambda _, qkv: seen.append(qkv.dtype)))
    assert seen == [torch.float32]
    line = caplog.messages[-1]
    [rate] = re.findall(r"at ([\d.e-]+) times the rate of float32", line)
    assert ("'precision: fp32' is faster" in line) == (float(rate) < 1)


def test_what_overflows_in_fp16_is_computed_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt"
    model = reference.tiny_esm2(path)
    with torch.no_grad():
        model.layers[1].fc1.weight *= 1e6
        model.layers[1].fc2.weight /= 1e6
    content = torch.load(path, weights_only=False)
    content["model"] = {f"encoder.sentence_encoder.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(content, path)
    checkpoint = weights.read([path])
    output = Output(3, "mean")
    half = Esm(checkpoint, CPU, precision="fp16")
    assert Engine(half).embed([b"MKTAYIAK"], [output]).reasons == ["non-finite representation"]
    embedded = Engine(half, exact=lambda: Esm(checkpoint, CPU)).embed([b"MKTAYIAK"], [output])
    expected = reference.represent(model, "MKTAYIAK")[output]
    assert embedded.reasons == [None]
    assert np.linalg.norm(embedded.values[output][0] - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_attention_on_a_cpu_is_sdpa(name: str) -> None:
    assert choose(name, CPU, torch.float32, 4, 16)[0] == "sdpa"


@pytest.mark.parametrize("name", ["flash_attn", "torch_varlen"])
def test_a_kernel_asked_for_by_name_never_falls_back(name: str) -> None:
    with pytest.raises(DeviceError, match=name):
        choose(name, CPU, torch.float32, 4, 16)


def test_auto_precision_is_exact_on_a_cpu() -> None:
    descriptor = Descriptor("m", [], [], "ab" * 32, random_weights.SHAPES["8M"])
    chosen = {
        precision: PlannedModel(ModelSpec("m", (6,), ("mean",), "skip", 1022, 0, precision), descriptor).precision_on(
            "cpu"
        )
        for precision in ("auto", "bf16")
    }
    assert chosen == {"auto": "fp32", "bf16": "bf16"}


def test_self_check_compares_a_sample_with_fair_esm_grade_vectors(esm2_8m: Path, uniprot: list[str]) -> None:
    sequences = [sequence[:40].encode() for sequence in random.Random(9).sample(uniprot, 12)]
    checkpoint = weights.read([esm2_8m])
    outputs = [Output(6, "mean"), Output(3, "std")]
    engine = Engine(Esm(checkpoint, CPU, precision="bf16"), exact=lambda: Esm(checkpoint, CPU), threads=2)
    check = self_check(engine, sequences, outputs, WHOLE, engine.embed(sequences, outputs))
    assert 1 <= check.sequences < 12
    assert 1e-5 < check.largest_difference < 0.05
    assert 0.999 <= check.least_cosine < 1


def test_self_check_refuses_vectors_of_another_sequence(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    engine = Engine(Esm(weights.read([tmp_path / "tiny.pt"]), CPU))
    output = Output(3, "mean")
    embedded = engine.embed([b"MKTAYIAK", b"WWPWGP"], [output])
    with pytest.raises(DeviceError, match="self-check"):
        self_check(engine, [b"WWPWGP", b"MKTAYIAK"], [output], WHOLE, embedded)


def test_self_check_has_nothing_to_compare_where_all_were_refused(tmp_path: Path) -> None:
    reference.tiny_esm2(tmp_path / "tiny.pt")
    engine = Engine(Esm(weights.read([tmp_path / "tiny.pt"]), CPU))
    output = Output(3, "mean")
    embedded = Embedded({output: [np.full(1, np.nan, np.float32)]}, ["non-finite representation"])
    assert self_check(engine, [b"MKV"], [output], WHOLE, embedded).sequences == 0
