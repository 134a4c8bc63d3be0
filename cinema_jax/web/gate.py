"""Who may ask the page for what: names under which it is served, and how much one visitor may send and order.

Before any work: a request that is refused here has been neither stored nor decoded.
"""

import collections
import ipaddress
import json
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError

# Bytes of a request that uploads nothing: a prompt and the names of files.
MOST_BYTES = 1 << 20
# Seconds for which what a visitor has sent counts against them; the page deletes it after that.
KEPT = 3600
# Things that one visitor may have waiting beside videos, such as the preview of their pictures.
MOST_EVENTS = 10
_NAME = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d+)?")

App = Callable[..., Any]


def check_names(names: Iterable[str]) -> None:
    """Raises `InputError` where one is no name of a host, as `--allowed-host` takes them."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"--allowed-host is {name!r}; accepted is the name of a host, such as demo.example.org or "
                "*.trycloudflare.com, without https:// before it"
            )


class Gate:
    """Stands before an ASGI application and turns away what it should not get.

    Args:
        app: the application.
        host: the address that is listened on.
        names: further names under which the page is reached, through a tunnel or a proxy; `*.` stands for any name
            before the rest.
        folder: where uploads lie.
        most_each: bytes that one visitor may send in `KEPT` seconds.
        most: bytes of all uploads together.
        orders: videos that one visitor may have ordered and not got yet.
        waiting: the events of the page's queue, being worked on or not, each with `session_hash`, `request` and `fn`.
        ordering: whether a function of the page, by its number or its name, makes a video.
    """

    def __init__(
        self,
        app: App,
        *,
        host: str,
        names: Iterable[str],
        folder: Path,
        most_each: int,
        most: int,
        orders: int,
        waiting: Callable[[], Iterable[Any]],
        ordering: Callable[[int | str], bool],
    ):
        self.app, self.folder, self.waiting, self.ordering = app, folder, waiting, ordering
        self.most_each, self.most, self.orders = most_each, most, orders
        self.own = {"localhost", host.lower(), socket.gethostname().lower()} - {"", "0.0.0.0", "::"}
        self.names = tuple(name.lower() for name in names)
        # Of each visitor: when they sent how many bytes.
        self._sent: dict[str, collections.deque[tuple[float, int]]] = {}

    async def __call__(self, scope: Mapping[str, Any], receive: App, send: App) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if wrong := self._stranger(headers):
            return await _refuse(scope, send, 403, wrong)
        if scope["type"] == "websocket" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self.app(scope, receive, send)
        path = scope["path"].rstrip("/")
        visitor = _address(scope, headers)
        upload = path.endswith("/upload")
        room = self._room(visitor) if upload else MOST_BYTES
        said = headers.get("content-length", "")
        if room <= 0 or (said.isdecimal() and int(said) > room):
            return await _refuse(scope, send, 413, self._full(upload))
        if upload:
            return await self._upload(scope, receive, send, visitor, room)
        body = await _body(receive, room)
        if body is None:
            return await _refuse(scope, send, 413, self._full(upload))
        if wrong := self._busy(path, body, visitor):
            return await _refuse(scope, send, 429, wrong)
        return await self.app(scope, _replayed(body, receive), send)

    def _stranger(self, headers: Mapping[str, str]) -> str | None:
        """What is wrong with the names that a browser says it is at, and comes from.

        A page of another name that leads to this address (DNS rebinding), or one that sends its visitors' browsers
        here, would make videos, and read them, in their stead. An address in numbers cannot lead elsewhere.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        allow = "its owner can allow it with --allowed-host"
        if not self._known(host):
            return f"this page is not served under the name {host[:100]!r}; {allow}"
        there = None if origin is None else origin.partition("://")[2]
        if there is not None and there != host and not self._listed(there):
            return f"requests from {origin[:100]!r} are not accepted by this page; {allow}"
        return None

    def _known(self, host: str) -> bool:
        name = _without_port(host)
        return name in self.own or _is_address(name) or self._listed(host)

    def _listed(self, host: str) -> bool:
        host = host.lower()
        for name in self.names:
            mine = host if ":" in name else _without_port(host)
            if mine == name or (name.startswith("*.") and mine.endswith(name[1:])):
                return True
        return False

    def _room(self, visitor: str | None) -> int:
        """Bytes that a visitor may still send."""
        now, sent = time.monotonic(), self._sent.get(visitor or "", collections.deque())
        while sent and sent[0][0] < now - KEPT:
            sent.popleft()
        files = self.folder.rglob("*") if self.folder.is_dir() else ()
        held = sum(file.stat().st_size for file in files if file.is_file())
        return min(self.most_each - sum(size for _, size in sent), self.most - held)

    def _full(self, upload: bool) -> str:
        if not upload:
            return f"a request has at most {MOST_BYTES} bytes here"
        each, most = self.most_each / 1e6, self.most / 1e6
        return f"there is no room for this: a visitor may send {each:g} MB in an hour, and all together {most:g} MB"

    async def _upload(self, scope: Mapping[str, Any], receive: App, send: App, visitor: str | None, room: int) -> None:
        """Let an upload through as far as there is room, whatever length it says it has."""
        seen, over = 0, False

        async def counted() -> Mapping[str, Any]:
            nonlocal seen, over
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > room:
                over = True
                # As if the visitor had left: the application throws away what it has.
                return {"type": "http.disconnect"}
            return message

        try:
            await self.app(scope, counted, send)
        except Exception:
            if not over:
                raise
        finally:
            # Of those who cannot be told apart, one would use up what all the others may send.
            if visitor is not None:
                self._sent.setdefault(visitor, collections.deque()).append((time.monotonic(), seen))

    def _busy(self, path: str, body: bytes, visitor: str | None) -> str | None:
        """What is wrong where a visitor orders more than their share."""
        name = path.rpartition("/")[2]
        called = "/call/" in path or "/api/" in path or "/run/" in path
        if not (called or path.endswith("/queue/join")):
            return None
        try:
            said = json.loads(body)
            session, function = said.get("session_hash"), name if called else said.get("fn_index")
        except (ValueError, AttributeError, RecursionError):
            # The application says what is wrong with it.
            return None
        mine = [event for event in self.waiting() if _of(event, session, visitor)]
        videos = sum(self.ordering(event.fn._id) for event in mine)
        if isinstance(function, int | str) and self.ordering(function) and videos >= self.orders:
            return f"{videos} of your videos are not finished yet; each visitor may order {self.orders} at a time"
        if len(mine) >= MOST_EVENTS:
            return f"{len(mine)} of your requests are waiting; each visitor may have {MOST_EVENTS}"
        return None


def _of(event: Any, session: str | None, visitor: str | None) -> bool:
    """Whether an event of the queue is a visitor's, known by the session or the address."""
    if event.session_hash == session:
        return True
    headers = {name.lower(): value for name, value in event.request.headers.items()}
    return visitor is not None and _address(event.request.scope, headers) == visitor


def _address(scope: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    """Where a visitor comes from; None for those of this machine, who are its owner or cannot be told apart.

    A tunnel or proxy on this machine says last in X-Forwarded-For whom it speaks for; nobody else is believed.
    """
    client = (scope.get("client") or ("",))[0]
    if not _is_address(client) or not ipaddress.ip_address(client).is_loopback:
        return client or None
    return headers.get("x-forwarded-for", "").rpartition(",")[2].strip() or None


def _without_port(host: str) -> str:
    return re.sub(r":\d+$", "", host.lower()).strip("[]")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _body(receive: App, most: int) -> bytes | None:
    """A request's body; None where it is longer than `most`."""
    found = bytearray()
    while True:
        message = await receive()
        found += message.get("body", b"")
        if len(found) > most:
            return None
        if not message.get("more_body"):
            return bytes(found)


def _replayed(body: bytes, receive: App) -> App:
    """What gives a body that has been read already, and then what comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Mapping[str, Any]:
        return left.pop() if left else await receive()

    return again


async def _refuse(scope: Mapping[str, Any], send: App, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008, "reason": sentence[:120]})
    body = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
