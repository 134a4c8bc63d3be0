"""Two visitors of the page, one of them hostile: what that one sends costs little and keeps nobody waiting."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import gradio_client
import httpx
import pytest
from tiny import process_environment, random_run

from cinema_jax.data.critters.examples import write_examples

# Bytes that one visitor may send: a tenth of what all may, but at least one picture.
MOST_EACH = 1_000_000


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page, where it keeps what visitors send, and a picture of a subject."""
    folder = tmp_path_factory.mktemp("page")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--checkpoint={random_run(folder / 'run')}", f"--port={port}", "--steps=2", "--compilation-cache="]
    words += ["--max-upload=1", "--max-uploads=5", "--allowed-host=demo.example.org"]
    command = [sys.executable, "-m", "cinema_jax.serve", *words]
    environment = process_environment() | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        assert run.stdout is not None
        printed = next((line for line in run.stdout if f":{port}" in line), None)
        assert printed, "the page did not start"
        yield f"http://127.0.0.1:{port}", folder, Path(write_examples(folder, 1)[0][0][0])
        run.terminate()
        run.wait(60)


HOSTILE, HONEST = {"X-Forwarded-For": "203.0.113.7"}, {"X-Forwarded-For": "198.51.100.1"}


def order(address: str, session: str, picture: str) -> httpx.Response:
    """What a browser sends to have a video made."""
    config = httpx.get(f"{address}/config").json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "generate")
    files = [{"path": picture, "meta": {"_type": "gradio.FileData"}}]
    body = {"data": [files, "it jumps", 2.0, 2.0, 100, 0, "", 1, None], "fn_index": number, "session_hash": session}
    return httpx.post(f"{address}/gradio_api/queue/join", json=body, headers=HOSTILE)


def upload(address: str, content: bytes, visitor: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", content, "image/png")}, headers=visitor)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "demo.example.org", "Origin": "https://demo.example.org"}, 200),
        ({"Host": "localhost"}, 200),
        ({}, 200),
    ],
)
def test_only_names_that_are_served_are_answered(served, headers, status):
    """A name of somebody else's that leads to this machine (DNS rebinding) is not."""
    answer = httpx.get(f"{served[0]}/config", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "--allowed-host" in answer.json()["detail"]


def test_no_more_is_stored_than_there_is_room_for(served):
    """Neither what says its length, nor what does not."""

    def held() -> int:
        return sum(file.stat().st_size for file in served[1].glob("cinema_jax_*/visitors/**/*") if file.is_file())

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(200):
            yield bytes(100_000)

    assert upload(served[0], bytes(2_000_000), HOSTILE).status_code == 413
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{served[0]}/gradio_api/upload", content=endless(), headers=HOSTILE | kind, timeout=20)
    assert held() < MOST_EACH
    # The one has had their share, the other has not.
    assert upload(served[0], bytes(1000), HOSTILE).status_code == 413
    assert upload(served[0], bytes(1000), HONEST).status_code == 200
    assert httpx.post(f"{served[0]}/gradio_api/queue/join", content=bytes(2_000_000)).status_code == 413


def test_who_orders_a_hundred_videos_has_two_and_the_other_visitor_gets_theirs(served, tmp_path):
    address, _, picture = served
    [there] = upload(address, picture.read_bytes(), HONEST).json()
    honest = gradio_client.Client(address, verbose=False, download_files=str(tmp_path), headers=HONEST)
    # Sessions cost nothing, and change nothing.
    answers = [order(address, f"hostile {number % 10}", there).status_code for number in range(100)]
    # One that is done makes room for another.
    assert answers[:3] == [200, 200, 429]
    assert set(answers) == {200, 429}
    assert answers.count(429) > 50
    asked = [gradio_client.handle_file(str(picture))], "it jumps", 2, 2, 2, 0, ""
    video, command, said = honest.submit(*asked, api_name="/generate").result(timeout=300)
    assert "Done in" in said
    assert Path(video).read_bytes()[4:8] == b"ftyp"
    assert "it jumps" in command
