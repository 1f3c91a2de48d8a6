"""How files name a trunk's tensors: finding the trunk by its names, and checking each of its tensors.

A family's own file has its `LAYOUTS`, and a function `read(trunk)` that makes a `Checkpoint` of a trunk in one of them.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from esmflow.architecture import Architecture
from esmflow.errors import DataError
from esmflow.model.state import State, read_object

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: What other programs call the tensors that they add to a model and that change its numbers, and what to do then.
_ADDED = [
    (
        re.compile(
            r"(^|\.)(lora_|base_layer\.|adapters?\.|adapter_|ia3_|prompt_|prefix_|oft_|boft_|vera_|hada_|lokr_)"
        ),
        "belongs to an adapter that is not merged; merge it (PEFT: merge_and_unload(), loralib: eval()) and save "
        "again, or give an adapter as PEFT saves it under 'adapter'",
    ),
    (
        re.compile(r"\.(SCB|CB|weight_format|absmax|quant_\w+|nested_\w+|qweight|qzeros|scales|g_idx|\w*scale)(\.|$)"),
        "belongs to quantised weights; give the model unquantised",
    ),
]
#: What may stand beside a trunk's modules and takes its output: heads for other tasks.
_HEAD = re.compile(r"(\w+_)?(head|heads|classifier|decoder|regressor|pooler|score|outputs|projector)")
_VOCABULARY = "vocab.txt"
#: Where each JSON file of a tokenizer has tokens and their numbers.
_TOKENS_IN: dict[str, list[tuple[str, ...]]] = {
    "tokenizer.json": [("model", "vocab"), ("added_tokens",)],
    "tokenizer_config.json": [("added_tokens_decoder",)],
    "added_tokens.json": [()],
}
#: The files of a tokenizer of transformers that tell a model's alphabet.
TOKENIZER_FILES = [_VOCABULARY, *_TOKENS_IN]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A trunk's tensors under its family's names, and the architecture they make."""

    architecture: Architecture
    tensors: Mapping[str, torch.Tensor]
    settings: Sequence[str] = ()
    """What decides its numbers and is in none of its files' tensors, where it is not as in official models."""


@dataclass(frozen=True)
class Layout:
    """The names that one kind of file has for the tensors of a family.

    In names, `{}` stands for a layer's number.
    """

    name: str
    layer: str
    """What the names of a layer's tensors begin with, and of no other model's: by it the trunk is found."""
    trunk: Mapping[str, str]
    """The family's name of each tensor by that of the file, as it stands in the trunk's module."""
    heads: Mapping[str, str]
    """The same of heads that may be there or not, in the trunk's module or in the one around it."""
    idle: str = r"(?!)"
    """A pattern of names within the trunk that no number depends on."""
    stacked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Of tensors that the family has in parts, row upon row: the names of those."""


@dataclass(frozen=True)
class Trunk:
    """The tensors of a family that a file holds."""

    state: State
    layout: Layout
    layers: int
    tensors: dict[str, torch.Tensor]
    """By the family's names."""
    names: Mapping[str, str]
    """The file's name of each."""

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise DataError unless these tensors are there, of these shapes, and finite floating-point numbers."""
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise self.state.error(f"lacks the tensor {self.name_of(name)} of its {self.layers} layers")
            tensor = self.tensors[name]
            if problem := unusable(tensor, shape):
                raise self.state.error(f"{self.name_of(name)} {problem}")

    def fits(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether a head is there with all of its tensors and in these shapes; says so in the log if it is in part."""
        present = [name for name in shapes if name in self.tensors]
        problems = {name: unusable(self.tensors[name], shapes[name]) for name in present}
        bad = [f"{self.name_of(name)} {problem}" for name, problem in problems.items() if problem]
        bad += [f"{self.name_of(name)} is missing" for name in shapes if name not in present]
        if present and bad:
            log.warning("%s: a head is passed over: %s", self.state.path, bad[0])
        return not bad

    def name_of(self, name: str) -> str:
        """What the file calls a tensor, or would call it."""
        return self.names.get(name) or next(
            (
                theirs.format(number[0] if (number := re.findall(r"\d+", name)) else "")
                for theirs, ours in {**self.layout.trunk, **self.layout.heads}.items()
                if re.fullmatch(_any_number(ours), name)
            ),
            name,
        )


def find_trunk(state: State, layouts: Iterable[Layout]) -> Trunk | None:
    """The trunk in one of these layouts, whatever stands before its names; None if there is none.

    What lies outside of it is named in the log. Raises DataError for more than one trunk, and for a tensor within it
    that is not understood, by its name.
    """
    trunks = []
    for layout in layouts:
        pattern = re.compile(rf"((?:.+?\.)??){_any_number(layout.layer)}")
        matches = [match for match in map(pattern.match, state.tensors) if match]
        layers = 1 + max((int(match[2]) for match in matches), default=0)
        trunks += [(prefix, layout, layers) for prefix in {match[1] for match in matches}]
    if len(trunks) > 1:
        places = sorted(f"{prefix or 'the top'} ({layout.name})" for prefix, layout, _ in trunks)
        raise state.error(f"holds more than one model, at {' and '.join(places)}; save the one that is meant alone")
    if not trunks:
        return None
    [(prefix, layout, layers)] = trunks
    if layers > len(state.tensors):
        raise state.error(f"has tensors of a layer {layers - 1}, but only {len(state.tensors)}; give the whole model")
    return _trunk(state, layout, prefix, layers)


def _trunk(state: State, layout: Layout, prefix: str, layers: int) -> Trunk:
    """The tensors of a trunk that has so many layers, and this before its names."""
    around = parent(prefix)
    trunk, heads = (numbered(names, layers) for names in (layout.trunk, layout.heads))
    tensors: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    outside: Counter[str] = Counter()
    for name, tensor in state.tensors.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        head = name.removeprefix(around) if name.startswith(around) else ""
        ours = trunk.get(inner) or heads.get(inner) or heads.get(head)
        if ours and ours not in tensors:
            tensors[ours], names[ours] = tensor, name
        elif advice := next((advice for pattern, advice in _ADDED if pattern.search(name)), None):
            raise state.error(f"{name} {advice}")
        elif not inner or is_head(inner):
            outside[(prefix if inner else "") + (inner or name).partition(".")[0]] += 1
        elif not re.fullmatch(layout.idle, inner):
            raise state.error(f"{name}: a tensor within the model that is not understood; give a plain ESM model")
    if outside:
        modules = ", ".join(f"{module} ({count} tensors)" for module, count in outside.items())
        log.info("%s: passed over, outside of the trunk: %s", state.path, modules)
    return Trunk(state, layout, layers, tensors, names)


def unusable(tensor: torch.Tensor, shape: Sequence[int]) -> str | None:
    """What keeps a tensor from being one of a trunk's, of this shape; None if nothing does."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "sparse" if tensor.layout != torch.strided else "quantised" if tensor.is_quantized else "without numbers"
        return f"is {kind}; save the model with plain tensors"
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"holds {kind}, as quantised weights do, not floating-point numbers; give the model unquantised"
    if tuple(tensor.shape) != tuple(shape):
        return f"has the shape {list(tensor.shape)}, where the others ask for {list(shape)}"
    # The extremes are NaN if any number is; unlike isfinite, they need no memory.
    if tensor.numel() and not all(math.isfinite(extreme.float()) for extreme in torch.aminmax(tensor)):
        return "holds NaN or infinity; the weights are damaged or their training has diverged"
    return None


def check_vocabulary(state: State, tokens: Sequence[str]) -> None:
    """Raise DataError if files of a tokenizer beside the weights have another token under a number of these."""
    for name, numbers in _vocabularies(state.path.parent).items():
        for token, number in numbers:
            if number < len(tokens) and tokens[number] != token:
                raise DataError(
                    f"{state.path.with_name(name)}: token {number} is {token!r} and not {tokens[number]!r}; "
                    "a model of another alphabet cannot be used"
                )
        if name == _VOCABULARY and len(numbers) < len(tokens):
            raise DataError(
                f"{state.path.with_name(name)}: has {len(numbers)} tokens, and the model's alphabet {len(tokens)}; "
                "a model of another alphabet cannot be used"
            )


def _vocabularies(directory: Path) -> dict[str, list[tuple[str, int]]]:
    """What each file of a tokenizer says: tokens and their numbers."""
    vocabularies = {}
    text = directory / _VOCABULARY
    if text.is_file():
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        vocabularies[text.name] = [(token, number) for number, token in enumerate(lines)]
    for name, ways in _TOKENS_IN.items():
        if (directory / name).is_file():
            content = read_object(directory / name)
            vocabularies[name] = [pair for way in ways for pair in _tokens(_within(content, way))]
    return vocabularies


def _within(content: object, way: Sequence[str]) -> object:
    for key in way:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _tokens(entries: object) -> Iterator[tuple[str, int]]:
    """Tokens and numbers of any form that tokenizers keep.

    These are {token: number}, {number: {content}}, [{id, content}] and, in the order of numbers, [[token, score]].
    """
    if isinstance(entries, list):
        pairs = {str(entry[0]): number for number, entry in enumerate(entries) if isinstance(entry, list) and entry}
        entries = pairs or {entry.get("id"): entry for entry in entries if isinstance(entry, dict)}
    for key, value in entries.items() if isinstance(entries, dict) else ():
        token, number = (value.get("content"), key) if isinstance(value, dict) else (key, value)
        if str(number).isdecimal():
            yield str(token), int(number)


def _any_number(name: str) -> str:
    """A pattern of the names of all layers."""
    return re.escape(name).replace(re.escape("{}"), r"(\d+)")


def is_head(name: str) -> bool:
    """Whether a tensor or module beside a trunk's own, by its name, takes the trunk's output for another task."""
    return bool(_HEAD.fullmatch(name.partition(".")[0]))


def parent(prefix: str) -> str:
    """What stands before the names of the module around one that has this before its own."""
    return re.sub(r"[^.]+\.$", "", prefix)


def numbered(names: Mapping[str, str], layers: int) -> dict[str, str]:
    """A layout's names with the numbers of all layers in them."""
    return {
        theirs.replace("{}", str(layer)): ours.replace("{}", str(layer))
        for theirs, ours in names.items()
        for layer in (range(layers) if "{}" in theirs else [0])
    }
