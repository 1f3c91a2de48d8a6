"""The layouts of ESM-C weights: the files of 2024, Biohub's, whose modules are TransformerEngine's, and transformers'.

The family's names of tensors are fair-esm's where it has such tensors, and transformers' for the others.
"""

from collections.abc import Mapping

from esmflow.alphabet import TOKENS
from esmflow.architecture import Architecture
from esmflow.model.layouts import Checkpoint, Layout, Trunk, check_vocabulary
from esmflow.model.state import State

_ALPHABET = ["|" if name == "<null_1>" else name for name in TOKENS]
_VOCABULARY = 64
_HEAD_DIM = 64
_PARTS = ("weight", "bias")
#: What two of the layouts have in one tensor, row upon row, and what it is made of.
_STACKED = {
    "layers.{}.self_attn.qkv_proj.weight": [f"layers.{{}}.self_attn.{which}_proj.weight" for which in "qkv"],
    "layers.{}.gate_up_proj.weight": [f"layers.{{}}.{which}_proj.weight" for which in ("gate", "up")],
}
#: What transformers' config.json says of any model that its weights alone would not tell, and what it is to say.
_SETTINGS = {"hidden_act": "silu", "rope_theta": 10000, "rope_type": "default"}


def _layer(layer: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names of a layer's tensors, from those within the layer."""
    return {f"{layer}{theirs}": f"layers.{{}}.{ours}" for theirs, ours in names.items()}


def _head(dense: str, layer_norm: str, last: str) -> dict[str, str]:
    modules = {dense: "lm_head.dense", layer_norm: "lm_head.layer_norm", last: "lm_head"}
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in modules.items() for part in _PARTS}


_AROUND_BLOCKS = {"embed.weight": "embed_tokens.weight", "transformer.norm.weight": "emb_layer_norm_after.weight"}
_ATTENTION_OF_BLOCK = {
    "attn.q_ln.weight": "self_attn.q_norm.weight",
    "attn.k_ln.weight": "self_attn.k_norm.weight",
    "attn.out_proj.weight": "self_attn.out_proj.weight",
}
_OF_2024 = Layout(
    name="ESM-C of 2024",
    layer="transformer.blocks.{}.attn.layernorm_qkv.1.",
    trunk={
        **_AROUND_BLOCKS,
        **_layer(
            "transformer.blocks.{}.",
            {
                **_ATTENTION_OF_BLOCK,
                **{f"attn.layernorm_qkv.0.{part}": f"self_attn_layer_norm.{part}" for part in _PARTS},
                "attn.layernorm_qkv.1.weight": "self_attn.qkv_proj.weight",
                **{f"ffn.0.{part}": f"final_layer_norm.{part}" for part in _PARTS},
                "ffn.1.weight": "gate_up_proj.weight",
                "ffn.3.weight": "down_proj.weight",
            },
        ),
    },
    heads=_head("sequence_head.0", "sequence_head.2", "sequence_head.3"),
    stacked=_STACKED,
)
_BIOHUB = Layout(
    name="Biohub's ESM-C",
    layer="transformer.blocks.{}.attn.layernorm_qkv.layer_norm_",
    trunk={
        **_AROUND_BLOCKS,
        **_layer(
            "transformer.blocks.{}.",
            {
                **_ATTENTION_OF_BLOCK,
                **{f"attn.layernorm_qkv.layer_norm_{part}": f"self_attn_layer_norm.{part}" for part in _PARTS},
                "attn.layernorm_qkv.weight": "self_attn.qkv_proj.weight",
                **{f"ffn.layer_norm_{part}": f"final_layer_norm.{part}" for part in _PARTS},
                "ffn.fc1_weight": "gate_up_proj.weight",
                "ffn.fc2_weight": "down_proj.weight",
            },
        ),
    },
    heads=_head("lm_head.0", "lm_head.2", "lm_head.3"),
    idle=r".*\._extra_state",
    stacked=_STACKED,
)
_TRANSFORMERS = Layout(
    name="transformers' ESM-C",
    # Other models of transformers have all names of a layer but this: their norms have no bias.
    layer="layers.{}.input_layernorm.bias",
    trunk={
        "embed_tokens.weight": "embed_tokens.weight",
        "norm.weight": "emb_layer_norm_after.weight",
        **_layer(
            "layers.{}.",
            {
                **{f"input_layernorm.{part}": f"self_attn_layer_norm.{part}" for part in _PARTS},
                **{f"self_attn.{which}_proj.weight": f"self_attn.{which}_proj.weight" for which in "qkv"},
                **{f"self_attn.{which}_norm.weight": f"self_attn.{which}_norm.weight" for which in "qk"},
                "self_attn.o_proj.weight": "self_attn.out_proj.weight",
                **{f"post_attention_layernorm.{part}": f"final_layer_norm.{part}" for part in _PARTS},
                **{f"mlp.{which}_proj.weight": f"{which}_proj.weight" for which in ("gate", "up", "down")},
            },
        ),
    },
    heads=_head("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
    # The reference computes the frequencies, whatever a file says of them.
    idle=r"rotary_emb\.(original_)?inv_freq",
)
LAYOUTS = [_OF_2024, _BIOHUB, _TRANSFORMERS]


def read(trunk: Trunk) -> Checkpoint:
    """An ESM-C of any size. Raises DataError for one that is not whole, or of which a tensor is not understood."""
    state = trunk.state
    check_vocabulary(state, _ALPHABET)
    embed_dim, ffn_dim = (_columns(trunk, name) for name in ("embed_tokens.weight", "layers.0.down_proj.weight"))
    for name in ("embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        if name in trunk.tensors and trunk.tensors[name].ndim:
            # Tokens beyond its own are some that no protein has.
            trunk.tensors[name] = trunk.tensors[name][:_VOCABULARY]
    trunk.check(_shapes(trunk, embed_dim, ffn_dim))
    for layer in range(trunk.layers):
        for stacked, names in trunk.layout.stacked.items():
            parts = trunk.tensors.pop(stacked.format(layer)).chunk(len(names))
            trunk.tensors.update({name.format(layer): part for name, part in zip(names, parts, strict=True)})
    head: dict[str, tuple[int, ...]] = {
        "lm_head.dense.weight": (embed_dim, embed_dim),
        **{f"lm_head.{name}": (embed_dim,) for name in ("dense.bias", "layer_norm.weight", "layer_norm.bias")},
        "lm_head.weight": (_VOCABULARY, embed_dim),
        "lm_head.bias": (_VOCABULARY,),
    }
    architecture = Architecture(
        kind="ESM-C",
        layers=trunk.layers,
        embed_dim=embed_dim,
        heads=_heads(state, embed_dim),
        ffn_dim=ffn_dim,
        token_dropout=False,
        max_residues=None,
        lm_head=trunk.fits(head),
        contact_head=False,
        vocabulary=_VOCABULARY,
    )
    _require_settings(state, architecture)
    usual = architecture.head_dim == _HEAD_DIM
    return Checkpoint(architecture, trunk.tensors, [] if usual else [f"heads={architecture.heads}"])


def _columns(trunk: Trunk, name: str) -> int:
    """The columns of a matrix by which the sizes of others are known."""
    tensor = trunk.tensors.get(name)
    if tensor is None or tensor.ndim != 2:
        raise trunk.state.error(f"lacks the matrix {trunk.name_of(name)}; give the whole model")
    return tensor.shape[1]


def _shapes(trunk: Trunk, embed_dim: int, ffn_dim: int) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the trunk."""
    rows = {
        "embed_tokens.weight": _VOCABULARY,
        "self_attn.qkv_proj.weight": 3 * embed_dim,
        **dict.fromkeys((f"self_attn.{which}_proj.weight" for which in ("q", "k", "v", "out")), embed_dim),
        "gate_up_proj.weight": 2 * ffn_dim,
        **dict.fromkeys(("gate_proj.weight", "up_proj.weight"), ffn_dim),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name in trunk.layout.trunk.values():
        within = name.removeprefix("layers.{}.")
        shape = (rows[within], embed_dim) if within in rows else (embed_dim,)
        if within == "down_proj.weight":
            shape = (embed_dim, ffn_dim)
        for layer in range(trunk.layers if "{}" in name else 1):
            shapes[name.format(layer)] = shape
    return shapes


def _heads(state: State, embed_dim: int) -> int:
    counts = [state.setting(name, int) for name in ("num_attention_heads", "n_heads")]
    heads = next((count for count in counts if count is not None), None)
    if heads is None and embed_dim % _HEAD_DIM == 0:
        heads = embed_dim // _HEAD_DIM
    if heads is None or heads < 1 or embed_dim % (2 * heads):
        raise state.error(
            f"the number of attention heads is not to be told: {embed_dim} dimensions are no multiple of {_HEAD_DIM}; "
            "put the model's own config.json beside it"
        )
    return heads


def _require_settings(state: State, architecture: Architecture) -> None:
    """Raise DataError if config.json tells of another model than the one that is computed."""
    rope = state.settings.get("rope_parameters")
    settings = {**state.settings, **(rope if isinstance(rope, dict) else {})}
    shape = {
        **dict.fromkeys(("num_hidden_layers", "n_layers"), architecture.layers),
        **dict.fromkeys(("hidden_size", "d_model"), architecture.embed_dim),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_heads"), architecture.heads),
        "head_dim": architecture.head_dim,
        "intermediate_size": architecture.ffn_dim,
    }
    for name, value in {**_SETTINGS, **shape}.items():
        if settings.get(name) not in (None, value):
            raise state.error(f"its settings (config.json) have {name}: {settings[name]}, and this ESM-C has {value}")
