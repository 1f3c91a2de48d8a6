"""What a process of the worker is asked to do. Nothing here needs PyTorch until it runs."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmflow.descriptor import Descriptor
from esmflow.spec import Output
from esmflow.worker.pool import Report

if TYPE_CHECKING:
    from esmflow.worker.process import Server


@dataclass(frozen=True)
class Model:
    """A model as a job asks for it."""

    descriptor: Descriptor
    precision: str
    attention: str


@dataclass(frozen=True)
class EmbedShard:
    """Embed the sequences first..stop-1 of a shard's file and commit them to `target`."""

    model: Model
    file: Path
    first: int
    stop: int
    treatment: str
    outputs: list[Output]
    target: Path

    def run(self, server: "Server") -> Future[dict[str, Any]]:
        """Returns what `Server.embed` does."""
        return server.embed(self)


@dataclass(frozen=True)
class SwitchModel:
    """Have a model ready. If that fails, the one before goes on serving."""

    model: Model

    def run(self, server: "Server") -> None:
        """Raises DataError for weights that are not those planned with, DeviceError if the model cannot run here."""
        server.registry.get(self.model)


@dataclass(frozen=True)
class Call:
    """Anything else: function(server, *arguments)."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def run(self, server: "Server") -> Any:
        """Returns what the function does."""
        return self.function(server, *self.arguments)


@dataclass(frozen=True)
class StartServer:
    """How a process of the pool makes its server."""

    device: str
    """As for `choose_device`; of several GPUs, each process takes that of its own number."""
    threads: int
    tokens_per_pack: int | None

    def __call__(self, index: int, report: Report) -> "Server":
        """Called in the process. Raises DeviceError if there is no such device."""
        from esmflow.worker.process import Server

        return Server.start(self, index, report)
