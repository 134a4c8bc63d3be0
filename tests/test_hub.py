"""Repositories of the hub as folders: huggingface_hub itself against a server that speaks the hub's protocol."""

import hashlib
import json
import logging
import re
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import close_session, constants, file_download

from cinema_jax.errors import InputError
from cinema_jax.experiment import hub

WEIGHTS = np.random.default_rng(0).bytes(300_000)
MAIN = {
    "config.json": b'{"version": 2}',
    "vae/model.safetensors": WEIGHTS,
    "tokenizer/spiece.model": b"\x00\x01",
    "merges.txt": b"#version\r\n",
    "chat_template.jinja": b"{{ messages }}",
}
UNREAD = {"pytorch_model.bin": b"\x80\x04", "vae/old.ckpt": b"\x80\x04", "x.pt": b"\x80\x04", "README.md": b"# Read me"}
REPOSITORIES = {
    "acme/fox": {"main": MAIN | UNREAD, "v1": {"config.json": b'{"version": 1}'}},
    "acme/pickles": {"main": UNREAD},
}


def commit(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


class Server(ThreadingHTTPServer):
    """What a test can look at and change."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        # (method, path, Range) of every request.
        self.asked: list[tuple[str, str, str | None]] = []
        # Parts of paths: how many of their downloads break off, and how they are refused.
        self.breaks: dict[str, int] = {}
        self.refusals: dict[str, tuple[int, str]] = {}

    def downloads(self, part: str) -> list[str | None]:
        return [extent for method, path, extent in self.asked if method == "GET" and part in path]


class Handler(BaseHTTPRequestHandler):
    """The hub's answers about a repository, the list of its files, and the files."""

    server: Server

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers["Range"]))
        for part, (status, code) in self.server.refusals.items():
            if part in path:
                return self.answer(status, {"X-Error-Code": code} if code else {})
        found = re.fullmatch(r"(?:/api/models)?/(\w+/\w+)(?:/(revision|tree|resolve)/([^/]+)(?:/(.+))?)?", path)
        repository, kind, revision, name = found.groups()
        revisions = REPOSITORIES.get(repository)
        if revisions is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        commits = {commit(repository, r): files for r, files in revisions.items()}
        sha = commit(repository, revision or "main") if (revision or "main") in revisions else revision
        if sha not in commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = commits[sha]
        if kind == "resolve":
            return self.send_file(path, sha, files[name])
        if kind == "tree":
            entries = [
                {"type": "file", "path": p, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                for p, x in files.items()
            ]
            return self.answer(200, {}, json.dumps(entries).encode())
        return self.answer(200, {}, json.dumps({"id": repository, "sha": sha}).encode())

    do_HEAD = do_GET

    def send_file(self, path: str, sha: str, data: bytes) -> None:
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = next((part for part, left in self.server.breaks.items() if part in path and left), None)
        cut = self.command == "GET" and part is not None
        if cut:
            self.server.breaks[part] -= 1
        # Half of the file at first, then nothing.
        self.answer(206 if start else 200, headers, data[start:], (0 if start else len(data) // 2) if cut else None)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub of its own, an empty cache, an empty folder to be in, and a library that does not sleep."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    # The library reads its environment when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    close_session()
    forget()
    yield server
    stop(server)
    thread.join()
    close_session()
    forget()


def forget() -> None:
    """As in a new process."""
    hub._fetched.cache_clear()


def stop(server: Server) -> None:
    server.shutdown()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(where: str) -> str:
    with pytest.raises(InputError) as caught:
        hub.folder(where)
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search(r"[.!?] [A-Z]", message), f"more than one sentence: {message}"
    return message


@pytest.mark.parametrize("where", ["hf://acme/fox", "hf://acme/fox@main"])
def test_what_is_read_arrives_bit_for_bit_and_nothing_else_is_asked_for(server, where):
    assert contents(hub.folder(where)) == MAIN
    assert not [path for _, path, _ in server.asked if path.endswith(tuple(UNREAD))]


@pytest.mark.parametrize("revision", ["v1", commit("acme/fox", "v1")])
def test_a_revision_is_a_branch_or_a_commit(server, revision):
    assert contents(hub.folder(f"hf://acme/fox@{revision}")) == {"config.json": b'{"version": 1}'}
    assert contents(hub.folder("hf://acme/fox")) == MAIN


def test_asking_again_makes_no_request(server, caplog):
    caplog.set_level(logging.INFO, hub.__name__)
    first = hub.folder("hf://acme/fox")
    assert "fetching hf://acme/fox" in caplog.text
    asked = len(server.asked)
    assert hub.folder("hf://acme/fox") == first
    assert len(server.asked) == asked


def test_a_new_process_fetches_no_file_again(server):
    first = hub.folder("hf://acme/fox")
    server.asked.clear()
    forget()
    assert hub.folder("hf://acme/fox") == first
    assert not server.downloads("/resolve/")


def test_a_download_that_breaks_goes_on_where_it_stopped(server, monkeypatch):
    # Bytes are written in pieces of this size: 15 of them before the file breaks.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", len(WEIGHTS) // 30)
    server.breaks["model.safetensors"] = 2
    assert contents(hub.folder("hf://acme/fox")) == MAIN
    # The second try gets nothing before it breaks as well.
    half = f"bytes={len(WEIGHTS) // 2}-"
    assert server.downloads("model.safetensors") == [None, half, half]


def test_a_download_that_keeps_breaking_is_told_and_keeps_whole_files(server):
    server.breaks["model.safetensors"] = 1000
    message = refusal("hf://acme/fox")
    assert "hf://acme/fox: its download was not complete (RemoteProtocolError: " in message
    assert "try again" in message
    arrived = {name for name in MAIN if server.downloads(name)} - {"vae/model.safetensors"}
    server.breaks.clear()
    server.asked.clear()
    assert contents(hub.folder("hf://acme/fox")) == MAIN
    assert arrived
    assert not [name for name in arrived if server.downloads(name)]


def unplugged(server, monkeypatch):
    # The port is closed: connections are refused.
    stop(server)


def told_offline(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def down(server, monkeypatch):
    server.refusals["/"] = (503, "")


def token_expired(server, monkeypatch):
    server.refusals["/"] = (401, "")


@pytest.mark.parametrize("fail", [unplugged, told_offline, down, token_expired])
@pytest.mark.parametrize("where", ["hf://acme/fox", "hf://acme/fox@" + commit("acme/fox", "main")])
def test_without_the_hub_the_copy_in_the_cache_is_used(server, monkeypatch, caplog, fail, where):
    caplog.set_level(logging.INFO, hub.__name__)
    hub.folder(where)
    forget()
    fail(server, monkeypatch)
    assert contents(hub.folder(where)) == MAIN
    assert "the copy in the cache is used" in caplog.text


def test_without_the_hub_half_a_copy_is_refused(server, monkeypatch):
    server.breaks["model.safetensors"] = 1000
    refusal("hf://acme/fox")
    unplugged(server, monkeypatch)
    assert "ConnectError" in refusal("hf://acme/fox")


def gated(server, monkeypatch):
    # Everybody may know of such a repository; its files are refused.
    server.refusals["/resolve/"] = (403, "GatedRepo")


def forbidden(server, monkeypatch):
    server.refusals["/"] = (403, "")


def full(server, monkeypatch):
    def check(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "_check_disk_space", check)


@pytest.mark.parametrize(
    ("where", "fail", "message"),
    [
        (
            "acme/wolf",
            None,
            "acme/wolf: the hub has no such repository, or a private one: check the name, or log in",
        ),
        ("acme/fox@v9", None, "acme/fox@v9: the repository has no such revision: name a branch"),
        (
            "acme/pickles",
            None,
            r"has none of \*\.json, \*\.safetensors, .*; pickles can run any code and are never",
        ),
        (
            "acme/fox",
            gated,
            "its owner grants access: ask for it at http://.*/acme/fox, then log in with `hf auth",
        ),
        (
            "acme/fox",
            forbidden,
            r"\(HfHubHTTPError: 403 Forbidden: None\): check connection, disk and access token",
        ),
        ("acme/fox", unplugged, r"\(ConnectError: .*Connection refused\): check connection"),
        (
            "acme/fox",
            told_offline,
            "HF_HUB_OFFLINE is set and keeps from asking the hub: unset it, or give a folder",
        ),
        ("acme/fox", down, r"\(HfHubHTTPError: .*503 Service Unavailable.*\): check connection"),
        ("acme/fox", full, "No space left on device.*: check connection, disk"),
    ],
)
def test_every_failure_is_one_sentence_that_says_what_to_do(server, monkeypatch, where, fail, message):
    if fail:
        fail(server, monkeypatch)
    said = refusal(f"hf://{where}")
    assert re.search(message, said), said


@pytest.mark.parametrize(
    "where",
    [
        "runs/dmeo", "runs/dmeo@v1", "./acme/fox", "/acme/fox", "~/fox", "acme", "a/b/c", "acme/fox/", "acme//fox", "",
        "acme/fo x", "acme/fox@", "@v1", "acme/-fox", "acme/fox.", "ac--me/fox", "acme/f..ox", "acme/fox.git",
        "füchse/fox", "hf://", "hf://acme", "hf:///acme/fox", "hf://acme/fox/vae", "http://acme/fox", "x" * 5000,
        "a\0b/c", "a" * 95 + "/b", "acme/fox@v1/../v1", "hf://acme/fox@v1..v2",
    ],
)  # fmt: skip
def test_what_is_neither_path_nor_hub_id_leads_to_no_request(server, where):
    Path("runs").mkdir()
    message = refusal(where)
    shown = repr(where if len(where) < 200 else where[:197] + "...")
    assert message.startswith(f"{shown} does not exist; accepted is a folder")
    assert "hf://owner/name" in message
    assert not server.asked


@pytest.mark.parametrize("where", ["acme/fox", "acme/fox@main", "weights/demo_pretrain", "runs/nope"])
def test_a_name_without_hf_never_leads_to_the_hub(server, where):
    """Whoever owns `runs/nope` there would decide what runs."""
    assert refusal(where).endswith(f"; for the repository of that name say hf://{where}")
    assert not server.asked


def test_what_exists_here_is_no_repository(server):
    Path("acme/fox").mkdir(parents=True)
    assert hub.folder("acme/fox") == Path("acme/fox")
    assert hub.folder(str(Path("acme").absolute())) == Path("acme").absolute()
    assert not server.asked
    # The hub is asked for by name.
    assert contents(hub.folder("hf://acme/fox")) == MAIN


def test_the_hub_does_not_import_jax():
    code = "import sys, cinema_jax.experiment.hub; sys.exit(bool({'jax', 'huggingface_hub'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
