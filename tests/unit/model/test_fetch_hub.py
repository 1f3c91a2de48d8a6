"""Weights from the Hugging Face Hub, of a server on this machine that speaks as the Hub does."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from checkpoints import assert_vectors, by_fair_esm, fair_esm_of, old_names, transformers_esm2
from esmflow.errors import ConfigError
from esmflow.planned_model import Descriptor
from esmflow.weights_source import HubRepository
from huggingface_hub import constants
from in_process import call
from listening import listening
from workflow import script

REPOSITORY = "lab/esm2-tiny"
CARD = b"---\nlicense: cc-by-4.0\n---\nA model."
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A Hub with one repository, and what was asked of it."""

    files: dict[str, bytes]
    url: str = ""
    gated: bool = False
    cut_after: int | None = None
    """Close the connection after so many bytes of the body of a file of weights, once."""
    false_checksums: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of each request."""

    def entry(self, name: str) -> dict[str, object]:
        """What the Hub's API tells of a file."""
        content = self.files[name]
        entry: dict[str, object] = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith((".safetensors", ".bin", ".pth")):
            checksum = hashlib.sha256(content if not self.false_checksums else b"other").hexdigest()
            entry["lfs"] = {"oid": checksum, "sha256": checksum, "size": len(content), "pointerSize": 134}
        return entry


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range")))
            api, files = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                siblings = [
                    {"rfilename": name, "blobId": entry["oid"]} | entry
                    for name, entry in ((name, hub.entry(name)) for name in hub.files)
                ]
                self.send(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(f"{api}/tree/"):
                tree = [{"type": "file", "path": name} | hub.entry(name) for name in hub.files]
                self.send(json.dumps(tree).encode())
            elif path.startswith(files):
                self.send_a_file(path.removeprefix(files).partition("/")[2])
            elif path.startswith(f"{api}/"):
                self.send_error_code(404, "RevisionNotFound")
            else:
                self.send_error_code(401, "RepoNotFound")

        def send_a_file(self, name: str) -> None:
            if hub.gated:
                self.send_error_code(403, "GatedRepo")
                return
            content = hub.files[name]
            weights = "lfs" in hub.entry(name)
            etag = hashlib.sha256(content).hexdigest() if weights else hashlib.sha1(content).hexdigest()
            begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            cut, hub.cut_after = (hub.cut_after, None) if weights and self.command == "GET" else (None, hub.cut_after)
            self.send(content[begin:], headers, 206 if begin else 200, cut)

        def send(
            self, body: bytes, headers: dict[str, str] | None = None, status: int = 200, cut: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:cut])
            self.close_connection = True

        def send_error_code(self, status: int, code: str) -> None:
            self.send(b"{}", {"X-Error-Code": code}, status)

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ESM-2 in shards, as transformers saves it."""
    directory = tmp_path_factory.mktemp("saved")
    transformers_esm2().save_pretrained(directory, max_shard_size="100KB")
    return directory


@pytest.fixture
def hub(saved: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in sorted(saved.iterdir())}
    state = Hub(files | {"README.md": CARD, "tf_model.h5": b"not needed", "pytorch_model.bin": b"not needed"})
    with listening(handler(state)) as state.url:
        yield state


Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Of the command that fetches weights, but for where they come from."""
    return ["--model", "m", "--directory", str(tmp_path / "weights"), "--descriptor", str(tmp_path / "m.json")]


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The variables by which a user tells huggingface_hub where it is and has its cache."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Run the command that fetches weights, with a cache of its own.

    huggingface_hub has read its variables of the environment by now, and so is told here what they would have said.
    """
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def run(
        weights: str = f"hf:{REPOSITORY}", *, endpoint: str = hub.url, cache: str = "hub", offline: bool = False
    ) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}{template}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / cache / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return call("fetch_model", *arguments, "--weights", weights, cwd=tmp_path)

    return run


def refusal(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line of a command that ended with this code."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if "error: " in line]
    return line


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_repository_gives_its_model_and_the_descriptor_its_commit(
    tmp_path: Path, hub: Hub, fetch: Fetch, saved: Path, revision: str
) -> None:
    result = fetch(f"hf:{REPOSITORY}{revision}")
    assert result.returncode == 0, result.stderr
    descriptor = Descriptor.load(tmp_path / "m.json")
    assert (descriptor.revision, descriptor.licence) == (COMMIT, "cc-by-4.0")
    shards = sorted(name for name in hub.files if name.startswith("model-"))
    assert [Path(file).name for file in descriptor.files] == shards
    digests = "".join(hashlib.sha256(hub.files[name]).hexdigest() for name in shards)
    assert descriptor.sha256 == hashlib.sha256(digests.encode()).hexdigest()
    state = old_names(transformers_esm2().state_dict(), rounded=False)
    assert_vectors(Path(descriptor.files[0]).parent, by_fair_esm(fair_esm_of(state)))
    downloaded = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path}
    assert downloaded == {*shards, "model.safetensors.index.json", "config.json", "README.md"}


def test_a_repository_with_one_file_of_another_name_gives_that(tmp_path: Path, hub: Hub, fetch: Fetch) -> None:
    transformers_esm2().save_pretrained(tmp_path / "whole")
    weights = (tmp_path / "whole" / "model.safetensors").read_bytes()
    hub.files = {"data/weights/tiny.safetensors": weights, "README.md": b"A model."}
    assert fetch().returncode == 0
    assert Path(Descriptor.load(tmp_path / "m.json").files[0]).name == "tiny.safetensors"
    hub.files["data/weights/other.pth"] = weights
    assert "tiny.safetensors" in refusal(fetch(cache="other"), ConfigError.exit_code)


def test_a_download_that_was_cut_goes_on(tmp_path: Path, hub: Hub, fetch: Fetch) -> None:
    # More than the library reads at once.
    transformers_esm2(hidden_size=256, intermediate_size=2000).save_pretrained(tmp_path / "large")
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    hub.cut_after = 11 << 20
    result = fetch()
    while result.returncode:
        refusal(result, 65)
        result = fetch()
    assert any(ranged and not ranged.startswith("bytes=0-") for _, _, ranged in hub.asked)
    [file] = Descriptor.load(tmp_path / "m.json").files
    assert Path(file).read_bytes() == hub.files["model.safetensors"]


def test_a_file_with_another_checksum_than_the_hub_tells_is_refused(hub: Hub, fetch: Fetch) -> None:
    hub.false_checksums = True
    text = refusal(fetch(), 65)
    assert hashlib.sha256(b"other").hexdigest() in text
    assert "model-00001" in text


def test_a_gated_repository_is_refused_with_what_to_do(hub: Hub, fetch: Fetch) -> None:
    hub.gated = True
    text = refusal(fetch(), 65)
    assert f"https://huggingface.co/{REPOSITORY}" in text
    assert "HF_TOKEN" in text


@pytest.mark.parametrize("weights", ["hf:lab/other", f"hf:{REPOSITORY}@v9"])
def test_an_unknown_repository_or_revision_is_bad_configuration(fetch: Fetch, weights: str) -> None:
    assert weights in refusal(fetch(weights), ConfigError.exit_code)


@pytest.mark.parametrize(
    "options", [{"offline": True}, {"endpoint": "http://127.0.0.1:1"}], ids=["offline", "no network"]
)
def test_without_a_network_the_cache_is_used_or_one_line_tells_what_to_bring(
    tmp_path: Path, fetch: Fetch, saved: Path, options: dict[str, Any]
) -> None:
    text = refusal(fetch(**options), 65)
    place = tmp_path / "weights" / REPOSITORY.replace("/", "--")
    for part in (REPOSITORY, "config.json", "model.safetensors", str(place)):
        assert part in text
    assert fetch().returncode == 0
    online = Descriptor.load(tmp_path / "m.json")
    result = fetch(**options)
    assert result.returncode == 0, result.stderr
    assert Descriptor.load(tmp_path / "m.json") == online

    place.parent.mkdir(exist_ok=True)
    place.symlink_to(saved)
    assert fetch(**options, cache="empty").returncode == 0
    by_hand = Descriptor.load(tmp_path / "m.json")
    assert (by_hand.sha256, by_hand.revision) == (online.sha256, "")


def test_the_variables_of_the_hub_are_obeyed(
    tmp_path: Path, hub: Hub, arguments: list[str], environment: dict[str, str]
) -> None:
    """By the command in a process of its own, with an endpoint and a cache, and then with that cache and offline."""
    command = [*arguments, "--weights", f"hf:{REPOSITORY}"]
    for more in ({}, {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_OFFLINE": "1"}):
        hub.asked.clear()
        result = script("fetch_model", *command, cwd=tmp_path, env=os.environ | environment | more)
        assert result.returncode == 0, result.stderr
        assert Descriptor.load(tmp_path / "m.json").revision == COMMIT
        assert Path(Descriptor.load(tmp_path / "m.json").files[0]).is_relative_to(tmp_path / "hub")
        assert bool(hub.asked) is not bool(more)


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a/../b", "hf:/b", "hf:a b/c", "hf:a/b@-x"]
)
def test_what_is_not_of_the_form_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        HubRepository.parse(text)
