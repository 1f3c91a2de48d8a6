"""What files call the tensors of ESM-1b, ESM-1v and ESM-2: fair-esm's own, transformers' and NVIDIA's.

The family's names of tensors are fair-esm's (`esm/model/esm2.py`, `esm/model/esm1.py`).
"""

from esmflow.model.layouts import Layout

#: The rotary frequencies, one for all layers.
FREQUENCIES = "layers.0.self_attn.rot_emb.inv_freq"
#: The same where transformers has one buffer for all layers.
ONE_BUFFER = "rotary_embeddings.inv_freq"
#: The modules of a layer.
LAYER = [f"self_attn.{name}_proj" for name in "qkv"] + [
    "self_attn.out_proj",
    "self_attn_layer_norm",
    "fc1",
    "fc2",
    "final_layer_norm",
]
_PARTS = ("weight", "bias")


def _both(modules: dict[str, str]) -> dict[str, str]:
    """The names of weight and bias of modules."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for theirs, ours in modules.items() for part in _PARTS}


FAIR_ESM = Layout(
    name="fair-esm",
    layer="layers.{}.self_attn_layer_norm.",
    trunk={
        "embed_tokens.weight": "embed_tokens.weight",
        "embed_positions.weight": "embed_positions.weight",
        "layers.{}.self_attn.rot_emb.inv_freq": "layers.{}.self_attn.rot_emb.inv_freq",
        **_both({name: name for name in ("emb_layer_norm_before", "emb_layer_norm_after")}),
        **_both({f"layers.{{}}.{name}": f"layers.{{}}.{name}" for name in LAYER}),
    },
    heads=_both({name: name for name in ("lm_head", "lm_head.dense", "lm_head.layer_norm", "contact_head.regression")}),
)
_ENCODER = {
    **_both({"encoder.emb_layer_norm_after": "emb_layer_norm_after", "embeddings.layer_norm": "emb_layer_norm_before"}),
    "embeddings.word_embeddings.weight": "embed_tokens.weight",
    "embeddings.position_embeddings.weight": "embed_positions.weight",
}
TRANSFORMERS = Layout(
    name="transformers",
    layer="encoder.layer.{}.attention.self.",
    trunk={
        **_ENCODER,
        # One for all layers: as transformers 5 has it in memory, and as it saves it.
        ONE_BUFFER: FREQUENCIES,
        "encoder.layer.*.attention.self.rotary_embeddings.inv_freq": FREQUENCIES,
        "encoder.layer.{}.attention.self.rotary_embeddings.inv_freq": "layers.{}.self_attn.rot_emb.inv_freq",
        **_both(
            {
                "encoder.layer.{}.attention.self.query": "layers.{}.self_attn.q_proj",
                "encoder.layer.{}.attention.self.key": "layers.{}.self_attn.k_proj",
                "encoder.layer.{}.attention.self.value": "layers.{}.self_attn.v_proj",
                "encoder.layer.{}.attention.output.dense": "layers.{}.self_attn.out_proj",
                "encoder.layer.{}.attention.LayerNorm": "layers.{}.self_attn_layer_norm",
                "encoder.layer.{}.intermediate.dense": "layers.{}.fc1",
                "encoder.layer.{}.output.dense": "layers.{}.fc2",
                "encoder.layer.{}.LayerNorm": "layers.{}.final_layer_norm",
            }
        ),
        # As transformers 5 saves them.
        "encoder.layer.{}.attention.LayerNorm.gamma": "layers.{}.self_attn_layer_norm.weight",
        "encoder.layer.{}.attention.LayerNorm.beta": "layers.{}.self_attn_layer_norm.bias",
        "encoder.layer.{}.LayerNorm.gamma": "layers.{}.final_layer_norm.weight",
        "encoder.layer.{}.LayerNorm.beta": "layers.{}.final_layer_norm.bias",
    },
    heads={
        "lm_head.decoder.weight": "lm_head.weight",
        "lm_head.bias": "lm_head.bias",
        **_both(
            {name: name for name in ("lm_head.dense", "lm_head.layer_norm", "contact_head.regression")},
        ),
    },
    idle=r"embeddings\.position_ids",
)
_TE_LAYER = {
    "self_attention.layernorm_qkv.layer_norm_": "self_attn_layer_norm.",
    "self_attention.layernorm_qkv.": "self_attn.qkv_proj.",
    "self_attention.proj.": "self_attn.out_proj.",
    "layernorm_mlp.layer_norm_": "final_layer_norm.",
    "layernorm_mlp.fc1_": "fc1.",
    "layernorm_mlp.fc2_": "fc2.",
}
#: NVIDIA's conversion to TransformerEngine (`nvidia/esm2_*`; bionemo-recipes, models/esm2/convert.py).
NVIDIA = Layout(
    name="NVIDIA",
    layer="encoder.layers.{}.self_attention.",
    trunk={
        **_ENCODER,
        "encoder.rotary_embeddings.inv_freq": FREQUENCIES,
        **{
            f"encoder.layers.{{}}.{theirs}{part}": f"layers.{{}}.{ours}{part}"
            for theirs, ours in _TE_LAYER.items()
            for part in _PARTS
        },
    },
    heads={
        "lm_head.decoder.weight": "lm_head.weight",
        "lm_head.decoder.bias": "lm_head.bias",
        "lm_head.decoder.layer_norm_weight": "lm_head.layer_norm.weight",
        "lm_head.decoder.layer_norm_bias": "lm_head.layer_norm.bias",
        "lm_head.dense.weight": "lm_head.dense.weight",
        "lm_head.dense.bias": "lm_head.dense.bias",
    },
    idle=r".*\._extra_state",
)
LAYOUTS = [FAIR_ESM, TRANSFORMERS, NVIDIA]
