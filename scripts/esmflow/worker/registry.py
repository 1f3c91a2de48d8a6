"""The models that a process holds: each is loaded once, and several stay while they fit."""

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from esmflow.engine.device import free_memory, require_memory, weights_bytes
from esmflow.engine.engine import Engine
from esmflow.errors import DeviceLostError
from esmflow.model import weights
from esmflow.planned_model import PlannedModel
from esmflow.receipt import SelfCheck

#: Weights SHA-256, precision, attention as asked for: what tells models apart. A name does not.
Key = tuple[str, str, str]

#: Bytes of the device that weights leave to activations.
_RESERVE = 1 << 30

log = logging.getLogger(__name__)


@dataclass
class Resident:
    """A model that is loaded, with the engine that runs it."""

    model: PlannedModel
    engine: Engine
    bytes: int
    """Of its weights on the device, as estimated before loading."""
    check: SelfCheck | None = None


class ModelRegistry:
    """Loads a model when it is first asked for; drops the least recently used ones when memory asks for it.

    load: makes the engine of a model at a precision. free: bytes that are free on a device, really.
    """

    def __init__(
        self,
        device: torch.device,
        load: Callable[[PlannedModel, str], Engine],
        free: Callable[[torch.device], int] = free_memory,
    ) -> None:
        self.device = device
        self.loads = self.switches = 0
        self.residents: dict[Key, Resident] = {}
        """All that are loaded, the least recently used first."""
        self._load, self._free = load, free
        self._current: Key | None = None

    def get(self, model: PlannedModel) -> Resident:
        """The model, loaded. To ask again for the one that served last does not touch the device.

        Raises DataError for weights that are absent or not those planned with, DeviceError if the model cannot run
        here; the one that served before goes on serving then. Raises DeviceLostError if even that cannot be.
        """
        precision = model.precision_on(self.device.type)
        key = (model.descriptor.sha256, precision, model.attention)
        if key not in self.residents:
            self._bring(model, key, precision)
        if key != self._current:
            self.residents[key] = self.residents.pop(key)
            self.switches += self._current is not None
            self._current = key
        return self.residents[key]

    def drop(self) -> tuple[PlannedModel, str]:
        """Free the least recently used model; returns it with its precision."""
        resident = self.residents.pop(next(iter(self.residents)))
        dropped = resident.model, resident.engine.model.precision
        log.info("dropping model %s to make room", resident.model.name)
        resident.engine.close()
        del resident
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return dropped

    def _bring(self, model: PlannedModel, key: Key, precision: str) -> None:
        weights.require_unchanged(model.descriptor)
        dropped = None
        while self.residents and not self._can_fit(weights_bytes(model.architecture, precision)):
            dropped = self.drop()
        try:
            self.residents[key] = self._made(model, precision)
        except Exception as error:
            if dropped and not self.residents:
                served, served_precision = dropped
                try:
                    self.residents[self._current or key] = self._made(served, served_precision)
                except Exception as again:
                    raise DeviceLostError(f"{error}; and the model before cannot be loaded again: {again}") from error
            raise

    def _can_fit(self, size: int) -> bool:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return size + _RESERVE <= self._free(self.device)

    def _made(self, model: PlannedModel, precision: str) -> Resident:
        shape = model.architecture
        require_memory(shape, precision, self.device, self._free(self.device))
        engine = self._load(model, precision)
        self.loads += 1
        return Resident(model, engine, weights_bytes(shape, precision))
