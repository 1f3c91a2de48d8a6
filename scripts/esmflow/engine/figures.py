"""The figures of an engine. They can be had without PyTorch."""

from dataclasses import dataclass, fields


@dataclass
class Figures:
    """What an engine has done so far."""

    sequences: int = 0
    residues: int = 0
    tokens: int = 0
    packs: int = 0
    pack_capacity: int = 0
    """Tokens that the packs could have held: their budget, or more for a single long sequence."""
    last_pack_free: int = 0
    """Free tokens in the emptiest packs, one for each call of `submit`."""
    splits: int = 0
    """Packs that did not fit into memory and were split."""
    waiting_seconds: float = 0.0
    """Time that the device waited for packs to be made."""

    @property
    def fill(self) -> float:
        """Share of the packs' capacity that was filled, but for the last pack of each call."""
        return self.tokens / max(self.pack_capacity - self.last_pack_free, 1)

    def add(self, other: "Figures") -> None:
        """Count what another has done, too."""
        for figure in fields(self):
            setattr(self, figure.name, getattr(self, figure.name) + getattr(other, figure.name))
