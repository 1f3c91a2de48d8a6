"""ESM-C against transformers' own forward pass: every layer, representation, layout and size."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import peft
import pytest
import random_residues
import reference
import reference_esmc as esmc
import torch
import transformers
from esmflow.architecture import Architecture
from esmflow.engine.engine import Engine
from esmflow.engine.self_check import self_check
from esmflow.engine.task import Embedded
from esmflow.errors import ConfigError, DataError
from esmflow.model import weights
from esmflow.model.adapters import adapter_files
from esmflow.model.layouts import Checkpoint
from esmflow.model.state import weight_files
from esmflow.model.trunk import DTYPES, Esm
from esmflow.planned_model import Descriptor, ModelSpec, PlannedModel
from esmflow.representation import VECTORS, Output
from esmflow.treatment import WHOLE, Treatment
from safetensors.torch import save_file

RELATIVE, ABSOLUTE = 1e-5, 1e-4
CPU = torch.device("cpu")
residues = partial(random_residues.residues, letters=random_residues.ALL_LETTERS)
LAYOUTS = ["2024", "biohub", "biohub without a prefix", "transformers", "shards", "trunk"]
Expected = dict[tuple[int, str], np.ndarray]


def every_output(layers: int, *of_last_layer: str) -> list[Output]:
    of_layers = [Output(layer, name) for layer in range(layers + 1) for name in (*VECTORS, "per_tok")]
    return of_layers + [Output(layers, name) for name in of_last_layer]


def read(path: Path) -> Checkpoint:
    return weights.read(weight_files(path))


def embed(path: Path, sequences: Sequence[str], outputs: list[Output], treatment: Treatment = WHOLE) -> Embedded:
    return Engine(Esm(read(path), CPU), threads=2).embed([s.encode() for s in sequences], outputs, treatment)


def assert_equal(embedded: Embedded, expected: Sequence[Expected], outputs: Sequence[Output]) -> None:
    assert embedded.reasons == [None] * len(expected)
    for row, values in enumerate(expected):
        for output in outputs:
            difference = embedded.values[output][row] - values[output]
            assert difference.shape == values[output].shape
            if output.representation == "logits":
                assert np.abs(difference).max() <= ABSOLUTE, row
            else:
                # The std of a single residue is 0; its error is then measured against the representation's size.
                scale = np.linalg.norm(values[output]) or np.linalg.norm(values[output.layer, "mean"])
                assert np.linalg.norm(difference) <= RELATIVE * scale, (output, row)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return esmc.tiny_esmc()


@pytest.fixture(scope="module")
def path(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return esmc.write(tmp_path_factory.mktemp("esmc"), model, "transformers")


@pytest.mark.parametrize("layers", [1, 2, 9, 30, 36, 50])
def test_every_layer_at_every_depth_has_its_share_of_the_residual_stream(tmp_path: Path, layers: int) -> None:
    deep = esmc.tiny_esmc(layers=layers)
    sequences = ["M", residues(40)]
    outputs = every_output(layers, "logits")
    embedded = embed(esmc.write(tmp_path, deep, "2024"), sequences, outputs)
    assert_equal(embedded, [esmc.represent_fully(deep, sequence) for sequence in sequences], outputs)


def test_proteins_of_1_to_2000_residues_in_mixed_packs(model: torch.nn.Module, path: Path) -> None:
    sequences = [residues(length, length) for length in (1, 2, 3, 33, 33, 140, 511, 1022, 1023, 2000)]
    outputs = every_output(3, "logits")
    embedded = embed(path, [*sequences, *["MK"] * 20], outputs)
    expected = [esmc.represent_fully(model, sequence) for sequence in [*sequences, "MK"]]
    assert_equal(embedded, [*expected, *expected[-1:] * 19], outputs)


def test_every_letter_is_the_token_that_it_is_for_transformers(model: torch.nn.Module, path: Path) -> None:
    outputs = [Output(0, "per_tok")]
    assert_equal(
        embed(path, [random_residues.ALL_LETTERS], outputs),
        [esmc.represent_fully(model, random_residues.ALL_LETTERS)],
        outputs,
    )


def test_long_proteins_in_windows_and_truncated(model: torch.nn.Module, path: Path) -> None:
    sequence, outputs = residues(700), every_output(3)
    windows = reference.represent_windows(model, sequence, 200, 50, layers_of=esmc.all_layers)
    assert_equal(embed(path, [sequence], outputs, Treatment("window", 200, 50)), [windows], outputs)
    cut = esmc.represent_fully(model, sequence[:200])
    assert_equal(embed(path, [sequence], outputs, Treatment("truncate", 200)), [cut], outputs)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.9999), ("bf16", 0.999)])
@pytest.mark.parametrize("large", [1.0, 30.0])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_16_bit_keeps_its_bound_also_where_the_stream_grows_large(
    tmp_path: Path, precision: str, bound: float, large: float, as_on_a_gpu: bool
) -> None:
    deep = esmc.tiny_esmc(layers=30, large=large)
    sequences = ["MK", residues(60), residues(100)]
    outputs = [Output(layer, name) for layer in range(31) for name in VECTORS]
    model = Esm(read(esmc.write(tmp_path, deep, "2024")), CPU, precision=precision)
    if as_on_a_gpu:
        model.attention_dtype = DTYPES[precision]
    embedded = Engine(model).embed([s.encode() for s in sequences], outputs)
    for row, sequence in enumerate(sequences):
        expected = esmc.represent_fully(deep, sequence)
        for output in outputs:
            value = embedded.values[output][row]
            cosine = value @ expected[output] / np.linalg.norm(value) / np.linalg.norm(expected[output])
            assert cosine >= bound, (output, row)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(tmp_path: Path, model: torch.nn.Module, layout: str) -> None:
    written = esmc.write(tmp_path, model, layout)
    has_head = layout != "trunk"
    assert read(written).architecture == Architecture(
        "ESM-C", 3, 128, 2, 192, False, None, lm_head=has_head, contact_head=False, vocabulary=64
    )
    sequences, outputs = ["M", residues(30)], every_output(3, *(["logits"] if has_head else []))
    expected = [esmc.represent_fully(model, sequence) for sequence in sequences]
    assert_equal(embed(written, sequences, outputs), expected, outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["2024", "biohub", "transformers"])
def test_weights_that_are_stored_in_16_bit_are_computed_in_full(
    tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    full, half, outputs = esmc.tiny_esmc(), esmc.tiny_esmc().to(dtype), every_output(3, "logits")
    written = esmc.write(tmp_path, half, layout)
    full.load_state_dict(half.state_dict())
    assert_equal(embed(written, ["MKTAYIAK"], outputs), [esmc.represent_fully(full, "MKTAYIAK")], outputs)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("layout", ["2024", "transformers"])
def test_an_adapter_is_merged_into_whatever_layout_as_peft_merges_it(tmp_path: Path, layout: str) -> None:
    base, outputs = esmc.tiny_esmc(), every_output(3, "logits")
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    written = esmc.write(tmp_path / "model", base, layout)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "o_proj", "gate_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    checkpoint = weights.read(weight_files(written), adapter_files(tmp_path / "adapter"))
    embedded = Engine(Esm(checkpoint, CPU)).embed([b"MKTAYIAK"], outputs)
    assert_equal(embedded, [esmc.represent_fully(merged, "MKTAYIAK")], outputs)


class Of2024(torch.nn.Module):
    """An ESM-C of 3 layers with the modules that the files of 2024 are named by, as far as PEFT looks at them."""

    def __init__(self, dim: int = 128, ffn_dim: int = 192) -> None:
        super().__init__()
        nn = torch.nn
        self.embed, self.transformer = nn.Embedding(64, dim), nn.Module()
        self.transformer.norm = nn.LayerNorm(dim, bias=False)
        self.transformer.blocks = nn.ModuleList(nn.Module() for _ in range(3))
        for block in self.transformer.blocks:
            block.attn = nn.Module()
            block.attn.layernorm_qkv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * dim, bias=False))
            block.attn.q_ln, block.attn.k_ln = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
            block.attn.out_proj = nn.Linear(dim, dim, bias=False)
            up, down = nn.Linear(dim, 2 * ffn_dim, bias=False), nn.Linear(ffn_dim, dim, bias=False)
            block.ffn = nn.Sequential(nn.LayerNorm(dim), up, nn.Identity(), down)
        self.sequence_head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Linear(dim, 64))


@pytest.mark.parametrize("layout", ["2024", "biohub", "transformers"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["layernorm_qkv.1", "out_proj", "ffn.1", "ffn.3"]},
        {"target_modules": ["layernorm_qkv.1", "ffn.1"], "use_dora": True},
        {"target_modules": ["layernorm_qkv.1"], "rank_pattern": {"blocks.1.attn.layernorm_qkv.1": 6}},
        {"target_modules": ["out_proj"], "modules_to_save": ["layernorm_qkv"]},
    ],
    ids=str,
)
def test_an_adapter_of_fused_modules_is_merged_into_whatever_layout(
    tmp_path: Path, layout: str, settings: dict[str, object]
) -> None:
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    base, fused, outputs = esmc.tiny_esmc(), Of2024(), every_output(3)
    written = esmc.write(tmp_path / "model", base, layout)
    fused.load_state_dict(esmc.of_2024(base))
    adapted = peft.get_peft_model(fused, peft.LoraConfig(r=4, lora_alpha=16, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = esmc.tiny_esmc()
    esmc.load_2024(expected, adapted.merge_and_unload().state_dict())
    checkpoint = weights.read(weight_files(written), adapter_files(tmp_path / "adapter"))
    embedded = Engine(Esm(checkpoint, CPU)).embed([b"MKTAYIAK"], outputs)
    assert_equal(embedded, [esmc.represent_fully(expected, "MKTAYIAK")], outputs)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_adapter_s_bias_where_the_model_has_none_is_refused(tmp_path: Path) -> None:
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    base = esmc.tiny_esmc()
    written = esmc.write(tmp_path / "model", base, "transformers")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(DataError, match=r"q_proj.*lora_bias"):
        weights.read(weight_files(written), adapter_files(tmp_path / "adapter"))


@pytest.mark.parametrize("dims", [(64, 100), (192, 512)])
def test_sizes_are_those_of_the_tensors(tmp_path: Path, dims: tuple[int, int]) -> None:
    sized = esmc.tiny_esmc(layers=2, embed_dim=dims[0], ffn_dim=dims[1])
    written = esmc.write(tmp_path, sized, "2024")
    architecture = read(written).architecture
    assert (architecture.embed_dim, architecture.ffn_dim, architecture.heads) == (*dims, dims[0] // 64)
    products = [p for n, p in sized.esmc.named_parameters() if p.ndim == 2 and "embed_tokens" not in n]
    assert architecture.matrix_numbers == sum(p.numel() for p in products)
    outputs = every_output(2)
    assert_equal(embed(written, ["MKTAYIAK"], outputs), [esmc.represent_fully(sized, "MKTAYIAK")], outputs)


def named_state(model: torch.nn.Module, layout: str) -> esmc.State:
    if layout == "transformers":
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return esmc.of_2024(model) if layout == "2024" else esmc.of_biohub(model)


@pytest.mark.parametrize("layout", ["2024", "biohub", "transformers"])
def test_each_tensor_of_the_trunk_that_is_missing_is_named(tmp_path: Path, model: torch.nn.Module, layout: str) -> None:
    state = named_state(model, layout)
    needed = [name for name in state if not re.search(r"head|_extra_state|(blocks|layers)\.[02]", name)]
    assert len(needed) > 9
    for name in needed:
        save_file({other: tensor for other, tensor in state.items() if other != name}, tmp_path / "m.safetensors")
        with pytest.raises(DataError, match=re.escape(name.removeprefix("esmc."))):
            read(tmp_path / "m.safetensors")


@pytest.mark.parametrize("layout", ["2024", "biohub", "transformers"])
def test_a_tensor_within_the_trunk_that_is_not_understood_is_named(
    tmp_path: Path, model: torch.nn.Module, layout: str
) -> None:
    layer = {"2024": "transformer.blocks.1", "biohub": "esmc.transformer.blocks.1", "transformers": "esmc.layers.1"}
    name = f"{layer[layout]}.attn.out_proj.bias"
    save_file(named_state(model, layout) | {name: torch.zeros(128)}, tmp_path / "m.safetensors")
    with pytest.raises(DataError, match=re.escape(name)):
        read(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("transformer.blocks.2.ffn.3.weight", lambda t: t[:, :-1].contiguous(), "shape"),
        ("transformer.blocks.1.attn.q_ln.weight", lambda t: t * torch.nan, "NaN"),
        ("transformer.blocks.0.ffn.1.weight", lambda t: t.to(torch.int8), "int8"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_by_name(
    tmp_path: Path,
    model: torch.nn.Module,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    message: str,
) -> None:
    state = esmc.of_2024(model)
    torch.save(state | {name: change(state[name])}, tmp_path / "m.pth")
    with pytest.raises(DataError, match=rf"{name}.*{message}"):
        read(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, "rope_theta"),
        ({"num_hidden_layers": 4}, "num_hidden_layers"),
        ({"intermediate_size": 64}, "intermediate_size"),
        ({"hidden_size": 64}, "hidden_size"),
        ({"head_dim": 32}, "head_dim"),
        ({"num_key_value_heads": 1}, "num_key_value_heads"),
        ({"n_layers": 30}, "n_layers"),
    ],
)
def test_settings_of_another_model_are_refused(
    tmp_path: Path, model: torch.nn.Module, setting: dict[str, object], name: str
) -> None:
    esmc.write(tmp_path, model, "transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | setting))
    with pytest.raises(DataError, match=name):
        read(tmp_path)


def test_the_heads_of_a_width_that_is_no_multiple_of_64_are_those_of_the_settings(tmp_path: Path) -> None:
    config = transformers.EsmcConfig(hidden_size=96, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3)
    model = transformers.EsmcForMaskedLM(config).eval()
    written, outputs = esmc.write(tmp_path, model, "transformers"), every_output(2)
    assert_equal(embed(written, ["MKTAYIAK"], outputs), [esmc.represent_fully(model, "MKTAYIAK")], outputs)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match="heads"):
        read(tmp_path)


def test_tokens_that_were_added_do_not_change_the_others(tmp_path: Path, model: torch.nn.Module) -> None:
    grown = esmc.tiny_esmc()
    grown.resize_token_embeddings(66)
    grown.save_pretrained(tmp_path)
    outputs = every_output(3, "logits")
    assert_equal(embed(tmp_path, ["MKTAYIAK"], outputs), [esmc.represent_fully(model, "MKTAYIAK")], outputs)


def test_a_qwen_of_the_same_names_is_none(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, head_dim=64
    )
    transformers.Qwen3Model(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="ESM"):
        read(tmp_path)


def test_auto_is_bf16_on_a_gpu_and_exact_on_a_cpu(path: Path) -> None:
    assert planned(path).precision_on("cuda") == "bf16"
    assert planned(path).precision_on("cpu") == "fp32"
    assert planned(path, precision="fp16").precision_on("cuda") == "fp16"


def test_the_self_check_holds_for_bf16(path: Path) -> None:
    sequences = [residues(30 + seed, seed).encode() for seed in range(12)]
    outputs = [Output(3, "mean"), Output(3, "logits")]
    engine = Engine(Esm(read(path), CPU, precision="bf16"), exact=lambda: Esm(read(path), CPU))
    check = self_check(engine, sequences, outputs, WHOLE, engine.embed(sequences, outputs))
    assert check.least_cosine >= 0.999
    assert check.largest_difference > 1e-5


def planned(path: Path, **changes: object) -> PlannedModel:
    spec = ModelSpec("esmc", (-1,), ("mean", "logits"), "full", 5000, 0, "auto")
    return PlannedModel(replace(spec, **changes), Descriptor("esmc", [], [], "0" * 64, read(path).architecture))


def test_a_run_may_ask_for_any_length_and_not_for_contacts(path: Path) -> None:
    planned(path).check()
    with pytest.raises(ConfigError, match="contacts"):
        planned(path, representations=("mean", "contacts")).check()


def test_logits_take_the_bytes_of_64_numbers_a_residue(path: Path) -> None:
    architecture = read(path).architecture
    assert Output(3, "logits").value_bytes(np.array([1, 10]), architecture).tolist() == [256, 2560]
