"""Files from outside: read with limits that no damaged or hostile one passes, written whole or not at all."""

import codecs
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError, passing_error

# Bytes of a config or note, and of a list that grows with the data. More is not read.
MOST, MOST_OF_LIST = 64 << 20, 4 << 30
# Containers in one another: Python's own limit would end in a stack trace, here or wherever a value is walked through.
DEPTH = 64
# Digits of a whole number. Transformers writes 10^30 where there is no limit.
_DIGITS = 40
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# Seconds after which nobody is writing a file any more.
_LEFT = 3600.0
_PARTIAL = "partial"
# What such a folder's name ends in.
_SCRATCH = ".cinema_jax"


class _Wrong(str):
    """Stands in a parsed value for what is not accepted, until its place is known."""


def check_regular(file: os.PathLike | str, what: str = "file") -> None:
    """Raises `InputError` where there is no such file, or what is there is a folder, or a pipe or device, which is
    never waited for; OSError where the storage is out of reach for now."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        raise InputError(f"{file}: no such {what}") from None
    except (OSError, ValueError) as error:
        if passing_error(error):
            raise
        raise InputError(f"{_short(file)}: cannot be looked up ({_reason(error)})") from None
    if stat.S_ISDIR(mode):
        article = "an" if what[0] in "aeiou" else "a"
        raise InputError(f"{file}: this is a folder, not {article} {what}")
    if not stat.S_ISREG(mode):
        raise InputError(f"{file}: this is a pipe or device; only files are read")


def read_text(file: os.PathLike, most: int = MOST) -> str:
    """A file of UTF-8 text, on disk or in a bucket.

    Raises:
        InputError: it cannot be read, is larger than `most` bytes or no UTF-8.
        OSError: the storage is out of reach for now: then nothing is known of the file.
    """
    if "://" not in str(file):
        check_regular(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        if passing_error(error):
            raise
        raise InputError(f"{file} cannot be read: {_reason(error)}") from None
    if len(data) > most:
        raise InputError(f"{file} is larger than {most} bytes, which no file of its kind is")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text (byte {error.start})") from None


def read_json(file: os.PathLike, most: int = MOST, *, finite: bool = True) -> dict[str, Any]:
    """The fields of a JSON file; raises as `read_text` and `parse_json` do, and InputError where it is no object."""
    values = parse_json(read_text(file, most), str(file), finite=finite)
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no object with fields")
    return values


def parse_json(text: str, where: str, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        where: what messages begin with: the text's file, or file and line.
        finite: refuse NaN and Infinity, which are no JSON; Python writes them all the same.

    Raises:
        InputError: no JSON, or a field, which is named, that is there twice, has a number that is too large or not
            finite, holds half a character (a lone surrogate) or is nested deeper than `DEPTH`.
    """
    wrong: list[_Wrong] = []

    def refuse(reason: str) -> _Wrong:
        wrong.append(_Wrong(reason))
        return wrong[-1]

    def whole(digits: str) -> int | _Wrong:
        return int(digits) if len(digits) <= _DIGITS else refuse(f"a number of {len(digits)} digits")

    def fraction(digits: str) -> float | _Wrong:
        value = float(digits)
        return refuse(f"{_short(digits)}, which is too large") if value in (float("inf"), float("-inf")) else value

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            values[twice] = refuse("there twice")
        return values

    constant: Callable[[str], Any] = refuse if finite else float
    try:
        value = json.loads(
            text, parse_int=whole, parse_float=fraction, parse_constant=constant, object_pairs_hook=fields
        )
    except RecursionError:
        raise InputError(f"{where} is nested too deeply; at most {DEPTH} levels are read") from None
    except ValueError as error:
        raise InputError(f"{where} cannot be read as JSON: {error}") from None
    _check_depth(value, where)
    if wrong or _SURROGATE.search(text):
        _find_wrong(value, where)
    return value


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            each
            for one in level
            if isinstance(one, dict | list)
            for each in (one.values() if isinstance(one, dict) else one)
            if isinstance(each, dict | list)
        ]
        if not level:
            return
    raise InputError(f"{where} is nested too deeply; at most {DEPTH} levels are read")


def _find_wrong(value: Any, where: str, path: str = "") -> None:
    """Raise for the first thing in a value that is not accepted, by its place."""
    if isinstance(value, _Wrong):
        raise InputError(f"{where}: {path or 'the value'} is {value}")
    if isinstance(value, str) and not is_text(value):
        raise InputError(f"{where}: {path or 'the value'} holds half a character (a lone surrogate)")
    if isinstance(value, dict):
        for name, each in value.items():
            if not is_text(name):
                raise InputError(f"{where}: a field's name holds half a character (a lone surrogate): {name!a}")
            _find_wrong(each, where, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _find_wrong(each, where, f"{path}[{place}]")


def is_text(text: str) -> bool:
    """Whether a text can be written: half of a character, as JSON's escapes and command lines make, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file of this machine, whole or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file of this machine, whole or not at all."""
    with whole_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_file(file: Path, *, alone: bool = False) -> Iterator[Path]:
    """A new, empty file beside `file` to be written, which takes its place when the block ends, and goes when it fails.

    Its name cannot be guessed, so no link that somebody planted leads the writing elsewhere. What killed processes have
    left of this file is removed: with `alone`, where no other process can be writing it, at once, else when it is old.
    """
    _clear_left(file, 0.0 if alone else _LEFT)
    partial = file.absolute().with_name(f".{_beginning(file)}.{secrets.token_hex(8)}.{_PARTIAL}")
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        yield partial
        # On disk before it has its name: a machine that loses power must not find half of it there.
        os.fsync(handle)
        partial.replace(file)
    finally:
        os.close(handle)
        partial.unlink(missing_ok=True)


def _clear_left(file: Path, age: float) -> None:
    pattern = re.compile(re.escape(f".{_beginning(file)}.") + rf"\w{{16}}\.{_PARTIAL}")
    folder = file.absolute().parent
    for left in os.listdir(folder):
        with contextlib.suppress(OSError):
            if pattern.fullmatch(left) and time.time() - os.lstat(folder / left).st_mtime >= age:
                os.unlink(folder / left)


@contextlib.contextmanager
def scratch(file: Path) -> Iterator[Path]:
    """A new folder beside `file`, which goes when the block ends, however it ends; and if the process is killed, when
    the next one writes into the same folder."""
    parent = file.absolute().parent
    for left in parent.glob(f".*{_SCRATCH}"):
        if left.is_dir() and not left.is_symlink():
            _remove_unless_held(left)
    folder = Path(tempfile.mkdtemp(prefix=f".{_beginning(file)}.", suffix=_SCRATCH, dir=parent))
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The system lets go of it when this process ends, however it ends.
        _hold(handle)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder)


def _remove_unless_held(folder: Path) -> None:
    with contextlib.suppress(OSError):
        # One that was just made may not be held yet.
        if time.time() - folder.stat().st_mtime < 1.0:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            if _hold(handle):
                shutil.rmtree(folder)
        finally:
            os.close(handle)


def _hold(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _beginning(file: Path) -> str:
    """A file's name, cut so that more can be added: file systems take 255 bytes."""
    return file.name.encode()[:200].decode(errors="ignore")


def own_folder(name: str) -> Path:
    """A folder of this user's for what may go at any time, under a name that all processes know.

    Raises:
        InputError: somebody else has put something there.
    """
    folder = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(f"{folder} is not a folder of this user alone; remove it, or set TMPDIR to another folder")
    return folder


def within(folder: Path, file: Path) -> Path:
    """`file`, which lies in `folder`: resolved, and refused where a name or link leads out of there.

    Links of the hub's cache are followed, into the blobs of the same repository.

    Raises:
        InputError: it leads elsewhere.
    """
    real, root = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    snapshots = next((one for one in (root, *root.parents) if one.name == "snapshots"), None)
    blobs = None if snapshots is None else snapshots.parent / "blobs"
    if real.is_relative_to(root) or (blobs and real.is_relative_to(blobs)):
        return real
    raise InputError(f"{_short(file)} leads out of {folder}, to {_short(real)}: only what lies in there is read")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
