"""Weights from the Hugging Face Hub: huggingface_hub downloads, resumes, caches, and knows tokens and offline mode."""

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from esmflow import files
from esmflow.errors import ConfigError, DataError
from esmflow.model.layouts import TOKENIZER_FILES
from esmflow.model.state import ADAPTER_CONFIG, MODEL_CARD, OF_DIRECTORY, SETTINGS, weight_files
from esmflow.weights_source import HubRepository

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")

log = logging.getLogger(__name__)


def fetch_repository(source: HubRepository, directory: Path) -> tuple[Path, str]:
    """Bring a repository's weights into the Hub's cache, with what tells of them: their path, and the commit.

    What lies in `directory` under the repository's name is taken instead, of no known commit; without a network, what
    the cache has. Raises DataError if neither can be had, ConfigError for what the Hub has not.
    """
    # Only here: it takes a second to import.
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    by_hand = directory / source.directory_name
    if by_hand.is_dir():
        return _place(source, by_hand), ""
    try:
        return _from_hub(source)
    except (ConfigError, DataError):
        raise
    except GatedRepoError as error:
        page = f"https://huggingface.co/{source.repository}"
        raise DataError(f"{source}: its owner asks for consent; give it at {page} and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"weights: {source}: the repository has no such revision; correct it") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"weights: {source}: there is no such repository, or it is private; correct the name or set HF_TOKEN"
        ) from error
    except Exception as error:  # The library raises what its HTTP client does, which is its own affair.
        if isinstance(error, OSError) and error.errno:
            raise
        if cached := _from_cache(source):
            log.warning("%s: no network (%s); taken as it is in the cache", source, type(error).__name__)
            return cached
        raise DataError(
            f"{source}: cannot be downloaded ({type(error).__name__}); run again to go on, or bring its {SETTINGS} and "
            f"model.safetensors (or shards and their index) by other means and put them into {by_hand.absolute()}"
        ) from error


def needed(source: HubRepository, names: Collection[str]) -> list[str]:
    """Of a repository's files those that make its weights, and what tells of them. Raises ConfigError for none."""
    beside = [name for name in (SETTINGS, ADAPTER_CONFIG, MODEL_CARD, *TOKENIZER_FILES) if name in names]
    return [*_weights(source, names), *beside]


def _weights(source: HubRepository, names: Collection[str]) -> list[str]:
    for name in OF_DIRECTORY:
        if name in names:
            stem, dot, suffix = name.removesuffix(".index.json").partition(".")
            shard = re.compile(rf"{stem}-\d+-of-\d+{re.escape(dot + suffix)}")
            return [name, *(filter(shard.fullmatch, sorted(names)) if name.endswith(".index.json") else ())]
    single = [name for name in sorted(names) if PurePosixPath(name).suffix in _SUFFIXES]
    if len(single) != 1:
        several = f"has several files of weights ({', '.join(single[:5])})" if single else "has no weights"
        raise ConfigError(f"weights: {source}: {several}; download the file that is meant and give its path")
    return single


def _from_hub(source: HubRepository) -> tuple[Path, str]:
    from huggingface_hub import HfApi, snapshot_download

    revision = HfApi().resolve_revision(source.repository, revision=source.revision)
    info = HfApi().model_info(source.repository, revision=revision.resolved, files_metadata=True)
    siblings = {file.rfilename: file for file in info.siblings or ()}
    names = needed(source, siblings)
    log.info("%s: commit %s, %s", source, revision.resolved, ", ".join(names))
    snapshot = Path(snapshot_download(source.repository, revision=revision, allow_patterns=names))
    for name in names:
        expected = siblings[name].lfs
        if expected and (digest := files.sha256(snapshot / name)) != expected.sha256:
            raise DataError(
                f"{source}: SHA-256 of {name} is {digest}, the Hub says {expected.sha256}; "
                f"delete {(snapshot / name).resolve()} and run again"
            )
    return _place(source, snapshot), revision.resolved


def _from_cache(source: HubRepository) -> tuple[Path, str] | None:
    """What the cache has of a repository, if that is all that is needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(
            snapshot_download(
                source.repository, revision=source.revision, allow_patterns=[SETTINGS], local_files_only=True
            )
        )
        path = _place(source, snapshot)
        weight_files(path)
    except (LocalEntryNotFoundError, ConfigError, DataError):
        return None
    return path, snapshot.name


def _place(source: HubRepository, directory: Path) -> Path:
    """Where the weights lie in a directory that has a repository's files: itself, or a file within it."""
    names: Iterable[Path] = (path for path in directory.rglob("*") if path.is_file())
    [weights, *_] = _weights(source, [path.relative_to(directory).as_posix() for path in names])
    return directory if weights in OF_DIRECTORY else directory / weights
