"""Reading ESM-1b, ESM-1v and ESM-2 weights of every layout.

The family's names of tensors are fair-esm's (`esm/model/esm2.py`, `esm/model/esm1.py`); queries, keys and values are
separate, and rotary frequencies are always there, for the first layer.
"""

from collections.abc import Mapping

import torch

from esmflow.alphabet import MASK, PADDING, TOKENS
from esmflow.architecture import Architecture
from esmflow.model.esm_names import FAIR_ESM, FREQUENCIES, LAYER, NVIDIA, ONE_BUFFER, TRANSFORMERS
from esmflow.model.layouts import Checkpoint, Trunk, check_vocabulary, unusable
from esmflow.model.state import State, contact_regression, open_file

Shapes = Mapping[str, tuple[int, ...]]
#: Of rotary frequencies.
_BASE = 10000.0


def read(trunk: Trunk) -> Checkpoint:
    """An ESM-1b, ESM-1v or ESM-2. Raises DataError for one that is not whole, or has what is not understood."""
    state = trunk.state
    check_vocabulary(state, TOKENS)
    if (regression := contact_regression(state.path)).exists():
        for name, tensor in open_file(regression)[0].items():
            trunk.tensors[f"contact_head.{name.rpartition('contact_head.')[2]}"] = tensor
    rotary = _is_rotary(trunk)
    _check_settings(trunk)
    _cut_to_alphabet(trunk)
    _tie_lm_head(trunk)
    embed_dim, ffn_dim = _width(trunk, "embed_tokens.weight", 1), _width(trunk, "layers.0.fc1.weight", 0)
    heads = _heads(trunk, embed_dim)
    if trunk.layout is NVIDIA:
        _split_qkv(trunk, heads, embed_dim)
    shapes = _trunk_shapes(trunk, embed_dim, ffn_dim, heads, rotary=rotary)
    trunk.check(shapes)
    lm_head, contact_head = _lm_head_shapes(embed_dim), _contact_head_shapes(trunk.layers * heads)
    has_lm_head, has_contact_head = trunk.fits(lm_head), trunk.fits(contact_head)
    kept = [*shapes, *(lm_head if has_lm_head else ()), *(contact_head if has_contact_head else ())]
    tensors = {name: trunk.tensors[name] for name in kept}
    if rotary:
        tensors[FREQUENCIES] = _frequencies(trunk, embed_dim // heads)
    elif has_lm_head and trunk.layout is FAIR_ESM:
        # fair-esm does so when it loads such a file; its head and its embedding are one tensor.
        tensors["lm_head.weight"] = tensors["lm_head.weight"].index_fill(0, torch.tensor([MASK]), 0.0)
    eps = state.setting("layer_norm_eps", float)
    architecture = Architecture(
        kind="ESM-2" if rotary else "ESM-1b",
        layers=trunk.layers,
        embed_dim=embed_dim,
        heads=heads,
        ffn_dim=ffn_dim,
        token_dropout=_token_dropout(state),
        # fair-esm counts positions from behind the padding's number; BOS and EOS take two.
        max_residues=None if rotary else _width(trunk, "embed_positions.weight", 0) - (PADDING + 1) - 2,
        lm_head=has_lm_head,
        contact_head=has_contact_head,
        norm_eps=Architecture.norm_eps if eps is None else eps,
    )
    return Checkpoint(architecture, tensors, _settings(trunk, architecture))


def _settings(trunk: Trunk, architecture: Architecture) -> list[str]:
    """What decides numbers and is in no tensor, where it is not as in official models; part of the weights' hash."""
    state, buffer = trunk.state, trunk.names.get(FREQUENCIES, "")
    settings = []
    if state.from_config:
        if architecture.norm_eps != Architecture.norm_eps:
            settings.append(f"norm_eps={architecture.norm_eps}")
        if not architecture.token_dropout:
            settings.append("token_dropout=False")
        if not buffer and "contact_head.regression.weight" not in trunk.names:
            settings.append(f"heads={architecture.heads}")
        if state.setting("qkv_weight_interleaved", bool) is False:
            settings.append("qkv_weight_interleaved=False")
        if not buffer and architecture.kind == "ESM-2" and (base := _rotary_base(state)) != _BASE:
            settings.append(f"rope_theta={base}")
        if not buffer and architecture.kind == "ESM-2" and "embed_positions.weight" in trunk.names:
            settings.append("positions=rotary")
    # This buffer was once passed over: what older stores have of such weights was computed with other frequencies.
    if buffer.endswith(ONE_BUFFER) and ".self." not in buffer:
        settings.append("frequencies=the file's")
    return settings


def _token_dropout(state: State) -> bool:
    """Whether embeddings are scaled as in training. Raises DataError where nothing tells."""
    if "token_dropout" in state.settings:
        return bool(state.setting("token_dropout", bool))
    # All official models have it. Of a model of its own config, transformers would take that it has not.
    if state.settings.get("model_type") == "esm":
        raise state.error("its settings (config.json) lack token_dropout; give the model's own config.json")
    return True


def _is_rotary(trunk: Trunk) -> bool:
    """Whether positions are rotary, by what the file or its settings say; shapes do not tell. Raises DataError."""
    state = trunk.state
    told = state.setting("position_embedding_type", str)
    if told not in (None, "rotary", "absolute"):
        raise state.error(f"has positions of the type {told!r}; no ESM has them")
    buffers = [name for name in trunk.tensors if name.endswith(".inv_freq")]
    if buffers and told == "absolute":
        raise state.error(
            f"has {trunk.name_of(buffers[0])}, of rotary positions, and settings (config.json) that say 'absolute'; "
            "give the model's own config.json"
        )
    if buffers or told:
        return told != "absolute"
    # Of the models under fair-esm's names, only those with learned positions have such a tensor.
    if trunk.layout is FAIR_ESM and "embed_positions.weight" in trunk.tensors:
        return False
    # transformers leaves out of config.json what is as usual, and usual are learned positions.
    if trunk.layout is TRANSFORMERS and state.settings and "embed_positions.weight" in trunk.tensors:
        return False
    raise state.error(
        "nothing tells whether positions are rotary (ESM-2) or learned (ESM-1b, ESM-1v); "
        "put the model's config.json beside it"
    )


def _check_settings(trunk: Trunk) -> None:
    """Raise DataError for settings that would give other numbers than the trunk does."""
    state = trunk.state
    for name, value in (("pad_token_id", PADDING), ("mask_token_id", MASK)):
        if state.setting(name, int) not in (None, value):
            raise state.error(f"its settings have {name} {state.setting(name, int)}, not ESM's {value}")
    for name in ("is_decoder", "add_cross_attention"):
        if state.setting(name, bool):
            raise state.error(f"its settings have {name}; give an encoder")
    if state.setting("encoder_activation", str) not in (None, "gelu"):
        raise state.error("its settings have an encoder_activation that is not ESM's gelu")
    eps = state.setting("layer_norm_eps", float)
    if eps is not None and not 0 <= eps < 1:
        raise state.error(f"its settings have layer_norm_eps {eps}; give the model's own config.json")
    before = state.setting("emb_layer_norm_before", bool)
    if before is not None and before != ("emb_layer_norm_before.weight" in trunk.tensors):
        raise state.error(
            f"its settings have emb_layer_norm_before {before}, but its tensors {'lack' if before else 'have'} "
            f"{trunk.name_of('emb_layer_norm_before.weight')}; give the model's own config.json"
        )


def _cut_to_alphabet(trunk: Trunk) -> None:
    """Leave only the rows of ESM's tokens where there are more: they pad, or are of tokens that no protein has."""
    rows = _width(trunk, "embed_tokens.weight", 0)
    if rows < len(TOKENS):
        raise trunk.state.error(
            f"{trunk.name_of('embed_tokens.weight')} has {rows} tokens, ESM's alphabet {len(TOKENS)}; "
            "it is of another model"
        )
    for name in ("embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        if name in trunk.tensors and trunk.tensors[name].ndim:
            trunk.tensors[name] = trunk.tensors[name][: len(TOKENS)]


def _tie_lm_head(trunk: Trunk) -> None:
    """Give the language model's head its matrix where only the embedding was saved, which is the same tensor.

    Raises DataError where fair-esm's two are not the same: it would take the head's for both.
    """
    embedding, matrix = trunk.tensors["embed_tokens.weight"], trunk.tensors.get("lm_head.weight")
    if matrix is None:
        if trunk.state.setting("tie_word_embeddings", bool) is not False and "lm_head.dense.weight" in trunk.tensors:
            trunk.tensors["lm_head.weight"] = embedding
    elif (
        trunk.layout is FAIR_ESM
        and matrix.shape == embedding.shape
        and (unusable(matrix, embedding.shape) or not torch.equal(matrix.float(), embedding.float()))
    ):
        raise trunk.state.error(
            f"{trunk.name_of('lm_head.weight')} differs from {trunk.name_of('embed_tokens.weight')}, "
            "which are one tensor in fair-esm; save one of them alone"
        )


def _width(trunk: Trunk, name: str, axis: int) -> int:
    """The size of a matrix along an axis."""
    if name not in trunk.tensors or trunk.tensors[name].ndim != 2 or not all(trunk.tensors[name].shape):
        shape = f"is no matrix but {list(trunk.tensors[name].shape)}" if name in trunk.tensors else "is missing"
        raise trunk.state.error(f"{trunk.name_of(name)} {shape}; the file is of another model or not whole")
    return trunk.tensors[name].shape[axis]


def _heads(trunk: Trunk, embed_dim: int) -> int:
    """The number of attention heads, by all that tells of it: rotary frequencies, the contact head, the settings."""
    counts: dict[str, float] = {}
    for name in (FREQUENCIES, "contact_head.regression.weight"):
        size = trunk.tensors[name].numel() if name in trunk.tensors else 0
        if size:
            counts[trunk.name_of(name)] = embed_dim / (2 * size) if name == FREQUENCIES else size / trunk.layers
    if (told := trunk.state.setting("num_attention_heads", int)) is not None:
        counts["num_attention_heads of its settings"] = told
    if not counts:
        raise trunk.state.error(
            "the number of attention heads is not in the file; put the model's config.json beside it"
        )
    heads = int(next(iter(counts.values())))
    if len(set(counts.values())) > 1 or heads < 1 or embed_dim % (2 * heads):
        means = ", ".join(f"{count:g} by {source}" for source, count in counts.items())
        raise trunk.state.error(f"the number of attention heads is {means}, which does not fit {embed_dim} dimensions")
    return heads


def _split_qkv(trunk: Trunk, heads: int, embed_dim: int) -> None:
    """Take apart NVIDIA's fused queries, keys and values: rows lie as [heads, 3, head_dim] or [3, heads, head_dim]."""
    by_head = trunk.state.setting("qkv_weight_interleaved", bool) is not False
    for layer in range(trunk.layers):
        attention = f"layers.{layer}.self_attn"
        for part, shape in (("weight", (3 * embed_dim, embed_dim)), ("bias", (3 * embed_dim,))):
            fused = f"{attention}.qkv_proj.{part}"
            trunk.check({fused: shape})
            rows = trunk.tensors.pop(fused)
            separate = rows.view(heads, 3, -1, *shape[1:]).transpose(0, 1) if by_head else rows.view(3, -1, *shape[1:])
            for which, tensor in zip("qkv", separate, strict=True):
                trunk.tensors[f"{attention}.{which}_proj.{part}"] = tensor.reshape(embed_dim, *shape[1:])


def _trunk_shapes(trunk: Trunk, embed_dim: int, ffn_dim: int, heads: int, *, rotary: bool) -> Shapes:
    """The tensors that a trunk must have. Raises DataError for settings of another shape than its tensors'."""
    for name, value in (
        ("num_hidden_layers", trunk.layers),
        ("hidden_size", embed_dim),
        ("intermediate_size", ffn_dim),
        ("head_dim", embed_dim // heads),
    ):
        if trunk.state.setting(name, int) not in (None, value):
            raise trunk.state.error(
                f"its settings (config.json) have {name} {trunk.state.setting(name, int)}, its tensors {value}; "
                "give the model's own config.json"
            )
    modules: dict[str, tuple[int, ...]] = {"emb_layer_norm_after": (embed_dim,)}
    before = [name for name in trunk.tensors if name.startswith("emb_layer_norm_before.")]
    if before and rotary:
        raise trunk.state.error(f"{trunk.name_of(before[0])}: no model with rotary positions has such a tensor")
    if before:
        modules["emb_layer_norm_before"] = (embed_dim,)
    for layer in range(trunk.layers):
        for name in LAYER:
            modules[f"layers.{layer}.{name}"] = (embed_dim,) if name.endswith("norm") else (embed_dim, embed_dim)
        modules[f"layers.{layer}.fc1"] = (ffn_dim, embed_dim)
        modules[f"layers.{layer}.fc2"] = (embed_dim, ffn_dim)
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (len(TOKENS), embed_dim)}
    if not rotary:
        shapes["embed_positions.weight"] = (max(_width(trunk, "embed_positions.weight", 0), 5), embed_dim)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _lm_head_shapes(embed_dim: int) -> Shapes:
    return {
        "lm_head.dense.weight": (embed_dim, embed_dim),
        "lm_head.dense.bias": (embed_dim,),
        "lm_head.layer_norm.weight": (embed_dim,),
        "lm_head.layer_norm.bias": (embed_dim,),
        "lm_head.weight": (len(TOKENS), embed_dim),
        "lm_head.bias": (len(TOKENS),),
    }


def _contact_head_shapes(maps: int) -> Shapes:
    return {"contact_head.regression.weight": (1, maps), "contact_head.regression.bias": (1,)}


def _frequencies(trunk: Trunk, head_dim: int) -> torch.Tensor:
    """The rotary frequencies, one for all layers: the file's own, else those that transformers computes.

    fair-esm's are rounded to fp16, hence the tolerance. Raises DataError for any that are not of this base and size.
    """
    computed = 1.0 / (_rotary_base(trunk.state) ** (torch.arange(0, head_dim, 2).float() / head_dim))
    names = [name for name in trunk.tensors if name.endswith(".inv_freq")]
    trunk.check(dict.fromkeys(names, (head_dim // 2,)))
    first = trunk.tensors[names[0]] if names else computed
    for name in names:
        if not torch.equal(trunk.tensors[name], first):
            raise trunk.state.error(f"{trunk.name_of(name)} differs from that of another layer")
    if not torch.allclose(first.float(), computed, rtol=0.1, atol=0):
        raise trunk.state.error(f"{trunk.name_of(names[0])} has not the frequencies of ESM-2's rotary positions")
    return first


def _rotary_base(state: State) -> float:
    parameters = state.settings.get("rope_parameters")
    if isinstance(parameters, dict):
        state = State(state.path, state.tensors, {"rope_theta": state.settings.get("rope_theta"), **parameters})
        if state.setting("rope_type", str) not in (None, "default"):
            raise state.error(f"its settings have rotary positions of the type {state.setting('rope_type', str)!r}")
    base = state.setting("rope_theta", float)
    if base is not None and not base > 0:
        raise state.error(f"its settings have rope_theta {base}; give the model's own config.json")
    return _BASE if base is None else base
