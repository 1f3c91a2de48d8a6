"""LoRA adapters as PEFT saves them: reading them, and merging them into a checkpoint.

Hu et al. 2022, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732; DoRA: Liu et al. 2024, arXiv:2402.09353.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.model.layouts import Checkpoint, Layout, is_head, parent, unusable
from esmflow.model.state import ADAPTER_CONFIG as _CONFIG
from esmflow.model.state import State, open_file, read_object

_Number = TypeVar("_Number", int, float)
_MERGE = "merge it with the program that made it (PEFT: merge_and_unload()), save the model and give it as 'weights'"
_TENSORS = ("adapter_model.safetensors", "adapter_model.bin")
#: What of a PEFT config changes no number once the adapter is trained, besides that which is used here.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config", "fan_in_fan_out"),
    *("inference_mode", "lora_bias", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size"),
    *("revision", "task_type"),
}
#: Ways to begin training that leave the model as it is; others put a part of its weights into the adapter.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
#: Modules that have a row for each token.
_OF_TOKENS = ("embed_tokens", "lm_head")
_PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?"
    r"|(?:base_layer\.|modules_to_save\.)?(?:weight|bias))"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Config:
    """What a PEFT config says that decides numbers (`peft.LoraConfig`)."""

    peft_type: str | None = None
    r: int = 8
    lora_alpha: float = 8
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None

    def scale(self, module: str) -> tuple[int, float]:
        """The rank of a module's adapter, and what its product is multiplied by."""
        rank = _of_pattern(self.rank_pattern or {}, module, self.r)
        alpha = _of_pattern(self.alpha_pattern or {}, module, self.lora_alpha)
        return rank, alpha / max(math.sqrt(rank) if self.use_rslora else rank, 1)

    def targets(self, module: str) -> bool:
        """Whether PEFT puts an adapter into a module of this name (`peft.tuners.tuners_utils`)."""
        saved = (re.search(rf"(^|\.){name}($|\.)", module) for name in self.modules_to_save or ())
        if _listed(self.exclude_modules, module) or any(saved) or not _listed(self.target_modules, module):
            return False
        layers = self.layers_to_transform
        if isinstance(self.target_modules, str) or layers is None or layers == []:
            return True
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        numbers = (re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module) for pattern in patterns or [r"(?<=\.)[^.]*"])
        number = next((int(match[1]) for match in numbers if match), None)
        return number in (layers if isinstance(layers, list) else [layers])


@dataclass(frozen=True)
class _Module:
    """A module of the trunk that an adapter changes."""

    adapter: State
    name: str
    """As the adapter calls it."""
    ours: str
    """As the checkpoint does."""
    parts: Mapping[str, torch.Tensor]
    """What the adapter has of it."""

    @property
    def rank(self) -> int:
        """The rank of its adapter; 0 if its weights alone were saved."""
        rows = self.parts.get("lora_A.weight", self.parts.get("lora_embedding_A"))
        return 0 if rows is None or not rows.ndim else len(rows)

    def take(self, part: str, *shape: int) -> torch.Tensor:
        """A part in float32, without tokens beyond the model's.

        Raises DataError unless it is there, of this shape and finite.
        """
        tensor = self.parts.get(part)
        if tensor is not None and self.ours in _OF_TOKENS and tensor.ndim == len(shape):
            tensor = tensor[:, : shape[1]] if part == "lora_embedding_A" else tensor[: shape[0]]
        problem = "is missing" if tensor is None else unusable(tensor, shape)
        if tensor is None or problem:
            raise self.adapter.error(f"{self.name}.{part} {problem}")
        return tensor.float()


def adapter_files(path: Path) -> list[Path]:
    """The files of the adapter in a directory: its config and its tensors. Raises DataError if it is none of PEFT's."""
    tensors = [path / name for name in _TENSORS if (path / name).is_file()]
    if (path / _CONFIG).is_file() and tensors:
        return [path / _CONFIG, tensors[0]]
    if (path / "pytorch_adapter.bin").is_file():
        raise DataError(
            f"{path}: is an adapter of AdapterHub, not of PEFT; merge it (model.merge_adapter(name)), "
            "save the model and give it as 'weights'"
        )
    raise DataError(f"{path}: no adapter as PEFT saves it: a directory with {_CONFIG} and {' or '.join(_TENSORS)}")


def merge(checkpoint: Checkpoint, parts: list[Path], layouts: Iterable[Layout]) -> Checkpoint:
    """The checkpoint with an adapter merged into it, in float32.

    parts: its files, as `adapter_files` gives them. layouts: the names that modules of this family go by. What the
    adapter has of heads that the checkpoint lacks is passed over and named in the log.
    Raises DataError for an adapter of another kind or another model, and for anything in it that is not understood.
    """
    adapter = State(parts[1], open_file(parts[1])[0], read_object(parts[0]))
    config = _config(adapter)
    by_module = _by_module(adapter)
    prefix, names = _names(adapter, checkpoint, by_module, layouts)
    for name in by_module.keys() - names.keys():
        if name.startswith(prefix) and not is_head(name.removeprefix(prefix)):
            raise adapter.error(f"{name}: a module that is not understood; {_MERGE}")
    if outside := sorted(by_module.keys() - names.keys()):
        log.info("%s: passed over, outside of the trunk: %s", adapter.path, ", ".join(outside))
    modules = [
        _Module(adapter, name, ours, of_rows)
        for name, parts in by_module.items()
        if name in names
        for ours, of_rows in zip(names[name], _by_rows(parts, len(names[name])), strict=True)
    ]
    changed = {module.name for module in modules if module.rank}
    tensors = dict(checkpoint.tensors)
    try:
        matrices = [name for name, (ours, *_) in names.items() if tensors[f"{ours}.weight"].ndim == 2]
        targets = {name for name in matrices if config.targets(name)}
        for name in sorted(targets ^ changed):
            raise adapter.error(
                f"{name} {'lacks' if name in targets else 'has'} the tensors of an adapter, "
                f"which {_CONFIG} {'asks' if name in targets else 'does not ask'} for"
            )
        for module in modules:
            _merge_module(module, config, tensors)
    except re.error as error:
        raise adapter.error(f"{_CONFIG} has a pattern that is none: {error}") from error
    return replace(checkpoint, architecture=_with_tied_head(checkpoint, modules), tensors=tensors)


def _with_tied_head(checkpoint: Checkpoint, modules: Iterable[_Module]) -> Architecture:
    """The architecture, without the language model's head if it was one tensor with an embedding that has changed.

    Raises DataError if such a head has an adapter: PEFT would merge it into the embedding, too.
    """
    embedding, head = (checkpoint.tensors.get(f"{name}.weight") for name in _OF_TOKENS)
    if embedding is None or head is None or not torch.equal(embedding, head):
        return checkpoint.architecture
    for module in modules:
        if module.ours == "lm_head" and module.rank:
            raise module.adapter.error(f"{module.name}: an adapter of what is one tensor with the embedding; {_MERGE}")
        if module.ours == "embed_tokens":
            log.warning("%s: changes the embedding; the language model's head is passed over", module.adapter.path)
            return replace(checkpoint.architecture, lm_head=False)
    return checkpoint.architecture


def _config(adapter: State) -> _Config:
    # Only here, so that the engine can be had where this package is not.
    import msgspec

    try:
        config = msgspec.convert(adapter.settings, _Config)
    except msgspec.ValidationError as error:
        raise adapter.error(f"{_CONFIG} beside it is damaged: {error}") from error
    if config.peft_type != "LORA":
        raise adapter.error(f"is an adapter of the kind {config.peft_type}, not LoRA; {_MERGE}")
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise adapter.error(f"began with {config.init_lora_weights!r}, which changes the model's own weights; {_MERGE}")
    known = {*_HARMLESS, *_Config.__dataclass_fields__}
    if unknown := [name for name, value in adapter.settings.items() if value and name not in known]:
        raise adapter.error(f"{_CONFIG} has {unknown[0]}, which is not understood; {_MERGE}")
    return config


def _by_module(adapter: State) -> dict[str, dict[str, torch.Tensor]]:
    """The adapter's tensors by module and part."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        match = _PART.fullmatch(name)
        if not match:
            raise adapter.error(f"{name}: a tensor that is not understood; give an adapter as PEFT saves it")
        part = re.sub(r"^(base_layer|modules_to_save)\.|(?<=vector)\.weight$", "", match["part"])
        if part in modules.setdefault(match["module"], {}):
            raise adapter.error(f"{name}: there are two such tensors; give an adapter as PEFT saves it")
        modules[match["module"]][part] = tensor
    return modules


def _names(
    adapter: State, checkpoint: Checkpoint, modules: Collection[str], layouts: Iterable[Layout]
) -> tuple[str, dict[str, list[str]]]:
    """What stands before the trunk's names in the adapter, and the checkpoint's names of each of its modules."""
    layout, places = max(
        ((layout, _places(_modules(layout, layout.trunk, checkpoint), modules)) for layout in layouts),
        key=lambda candidate: candidate[1].total(),
    )
    if not places:
        raise adapter.error(f"changes no module of this model; it has {', '.join(sorted(modules)[:3]) or 'none'}")
    if len(places) > 1:
        raise adapter.error(f"changes more than one model, {' and '.join(sorted(places))}")
    [prefix] = places
    trunk, heads = (_modules(layout, names, checkpoint) for names in (layout.trunk, layout.heads))
    names = {f"{around}{head}": ours for head, ours in heads.items() for around in (prefix, parent(prefix))}
    names = {name: ours for name, ours in names.items() if name in modules}
    return prefix, names | {f"{prefix}{name}": ours for name, ours in trunk.items()}


def _modules(layout: Layout, names: Mapping[str, str], checkpoint: Checkpoint) -> dict[str, list[str]]:
    """The checkpoint's names of each module that has a weight, by a layout's: several where it has them in parts."""
    modules = {}
    for theirs, ours in names.items():
        for layer in range(checkpoint.architecture.layers if "{}" in theirs else 1):
            weights = [name.replace("{}", str(layer)) for name in layout.stacked.get(ours, [ours])]
            if theirs.endswith(".weight") and all(weight in checkpoint.tensors for weight in weights):
                module = theirs.replace("{}", str(layer)).removesuffix(".weight")
                modules[module] = [weight.removesuffix(".weight") for weight in weights]
    return modules


def _by_rows(parts: Mapping[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """An adapter's parts for each of the modules of which its own has the rows, one upon the other."""
    split = {
        part: [tensor] * count if part == "lora_A.weight" or not tensor.ndim else tensor.tensor_split(count)
        for part, tensor in parts.items()
    }
    return [{part: tensors[number] for part, tensors in split.items()} for number in range(count)]


def _places(names: Iterable[str], modules: Iterable[str]) -> Counter[str]:
    """What stands before a layout's names in the adapter's, and how many modules that makes the trunk's."""
    pairs = ((module, name) for module in modules for name in names)
    return Counter(module.removesuffix(name) for module, name in pairs if f".{module}".endswith(f".{name}"))


def _listed(names: str | list[str] | None, module: str) -> bool:
    """Whether a module is meant by a pattern, or by a list of names or of their ends."""
    if isinstance(names, str):
        return bool(re.fullmatch(names, module))
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _of_pattern(patterns: Mapping[str, _Number], module: str, otherwise: _Number) -> _Number:
    """The number of the first pattern that fits the end of a module's name, else that of all modules."""
    return next(
        (number for pattern, number in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), otherwise
    )


def _merge_module(module: _Module, config: _Config, tensors: dict[str, torch.Tensor]) -> None:
    """Put into `tensors` what they are with the module's adapter."""
    weight, bias = f"{module.ours}.weight", f"{module.ours}.bias"
    for part, name in (("weight", weight), ("bias", bias)):
        if part in module.parts:
            if name not in tensors:
                raise module.adapter.error(f"{module.name}.{part}: the model has no such tensor")
            tensors[name] = module.take(part, *tensors[name].shape)
    if not module.rank:
        return
    rank, scale = config.scale(module.name)
    if rank != module.rank:
        raise module.adapter.error(f"{module.name}: its rank is {module.rank}, {_CONFIG} says {rank}")
    rows, columns = tensors[weight].shape
    base = tensors[weight].float()
    if "lora_embedding_A" in module.parts:
        a = module.take("lora_embedding_A", rank, rows)
        b = module.take("lora_embedding_B", columns, rank)
        delta = (b @ a).T * scale
    else:
        a = module.take("lora_A.weight", rank, columns)
        b = module.take("lora_B.weight", rows, rank)
        delta = b @ a * scale
    merged = base + delta
    if config.use_dora:
        if "lora_embedding_A" in module.parts:
            raise module.adapter.error(f"{module.name}: DoRA of an embedding; {_MERGE}")
        magnitude = module.take("lora_magnitude_vector", rows)
        merged *= (magnitude / torch.linalg.norm(merged, dim=1))[:, None]
    if problem := unusable(merged, (rows, columns)):
        raise module.adapter.error(f"{module.name}, merged, {problem}")
    tensors[weight] = merged
    if "lora_B.bias" in module.parts:
        if bias not in tensors:
            raise module.adapter.error(
                f"{module.name}: has a bias (lora_bias) where the model has none; train it without"
            )
        tensors[bias] = tensors[bias].float() + module.take("lora_B.bias", rows) * scale
