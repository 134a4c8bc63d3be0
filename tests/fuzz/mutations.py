"""Damaged and hostile variants of a file, each a function of the file's bytes and a random generator alone."""

import json
import random
from collections.abc import Callable
from typing import Any

# What stands in the place of a value.
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 10**6, -(10**6), 10**9, 2**31, 2**63, 10**29, 10**40, 0.5, -0.0, 1e308, 1e-320),
    *("", "x", "a\0b", "x" * 5000, "../../../etc/passwd", "/dev/zero", "/dev/stdin", "\ud800", "NaN", "ä\u2028b"),
    *([], [[]], {}, [None], [1, "a"], {"a": 1}, [{}], [0] * 5000, {"": None}, [[[[[[1]]]]]]),
    *(float("nan"), float("inf"), float("-inf")),
)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text (or one of several lines) with something wrong in it."""
    if rng.random() < 0.25:
        return rng.choice(_TEXTS)(data.decode(), rng)
    lines = data.decode().split("\n")
    places = [i for i, line in enumerate(lines) if line.strip()]
    several = len(places) > 1 and all(lines[i].startswith("{") for i in places)
    if not several:
        return _value(data.decode(), rng).encode(errors="surrogatepass")
    place = rng.choice(places)
    lines[place] = _value(lines[place], rng)
    return "\n".join(lines).encode(errors="surrogatepass")


def _value(text: str, rng: random.Random) -> str:
    value = json.loads(text)
    places = list(_places(value))
    holder, key = rng.choice(places) if places else ([value], 0)
    what = rng.random()
    if what < 0.7 or not isinstance(holder, dict):
        holder[key] = rng.choice(VALUES)
    elif what < 0.8:
        del holder[key]
    elif what < 0.9:
        holder[rng.choice(("extra", "", "\ud83d", key * 2))] = rng.choice(VALUES)
    else:
        # Twice in one object.
        return json.dumps(value).replace(json.dumps(key) + ":", json.dumps(key) + ": 1, " + json.dumps(key) + ":", 1)
    return json.dumps(value if places else holder[0])


def _places(value: Any) -> Any:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children)[:200]:
        yield value, key
        yield from _places(child)


def _deep(opening: str, closing: str) -> Callable[[str, random.Random], bytes]:
    return lambda text, rng: ((n := rng.choice((70, 2000, 100_000))) * opening + "1" + n * closing).encode()


_TEXTS: tuple[Callable[[str, random.Random], bytes], ...] = (
    lambda text, rng: b"",
    lambda text, rng: rng.choice((b"null", b"[]", b"{}", b"1", b'"x"', b"NaN", b"{", b"[[", b"\0" * 100)),
    lambda text, rng: text.encode("utf-16"),
    lambda text, rng: text.encode("utf-8-sig"),
    lambda text, rng: text.encode() + b"\xff\xfe",
    lambda text, rng: b'{"a": "\xe9"}',
    lambda text, rng: text.encode() * 2,
    lambda text, rng: text[: rng.randrange(len(text) + 1)].encode(),
    lambda text, rng: f'{{"a": {"9" * 5000}}}'.encode(),
    lambda text, rng: b'{"a": "\\ud800"}',
    _deep("[", "]"),
    _deep('{"a":', "}"),
    _deep("[", ""),
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Any file, damaged in one to three places."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_DAMAGE)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random, most: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if changed:
            changed[rng.randrange(min(len(changed), most or len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _block(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 64, 1000)))


def _replaced(data: bytes, rng: random.Random) -> bytes:
    start, end = _block(data, rng)
    filler = rng.choice((b"\0", b"\xff", b"A", b"%s"))
    return data[:start] + (filler * (end - start))[: end - start] + data[end:]


def _number(data: bytes, rng: random.Random) -> bytes:
    """Four bytes as a size or an offset that is far too large, or negative."""
    start = rng.randrange(max(1, min(len(data), 400)))
    number = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x00100000))
    return data[:start] + number.to_bytes(4, rng.choice(("big", "little"))) + data[start + 4 :]


_DAMAGE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip,
    _flip,
    lambda data, rng: _flip(data, rng, 64),
    _number,
    _replaced,
    lambda data, rng: data[: rng.randrange(len(data) + 1)],
    lambda data, rng: data[: len(data) // 2],
    lambda data, rng: data[rng.randrange(len(data) + 1) :],
    lambda data, rng: b"" if rng.random() < 0.2 else data + rng.randbytes(100),
    lambda data, rng: (b := _block(data, rng)) and data[: b[1]] + data[b[0] :],
    lambda data, rng: rng.randbytes(rng.choice((1, 8, 1000))),
    lambda data, rng: bytes(len(data)),
)


def mutated(name: str, data: bytes, rng: random.Random) -> bytes:
    """A variant of a file, by what its name says that it holds."""
    texts = (".json", ".jsonl", "_METADATA")
    if name.endswith(texts) and rng.random() < 0.85:
        return of_json(data, rng)
    return of_bytes(data, rng)
