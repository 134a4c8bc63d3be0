"""The videos that are curated, by name, and what is known of them beforehand."""

import csv
import dataclasses
import glob
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import MOST, MOST_OF_LIST, parse_json, read_text
from cinema_jax.inputs.texts import check_whole

FIELDS = ("video", "caption", "prompt")


@dataclasses.dataclass(frozen=True)
class Source:
    """A video file.

    Attributes:
        name: what it is called in all results: its path below the folder that all lie in, which need not be the same
            on another machine.
        path: where it lies.
        caption: of all its clips; None: nobody has written one.
        prompt: the short text that a user would write; None: the caption.
        size: bytes, and `changed`, its time of change: what is made of it holds as long as these do.
    """

    name: str
    path: str
    caption: str | None = None
    prompt: str | None = None
    size: int = -1
    changed: int = -1

    @property
    def content(self) -> tuple:
        """What that which is made of its pictures follows from."""
        return self.name, self.size, self.changed, self.caption is None


def matching(pattern: str) -> list[Source]:
    """The files that a pattern such as `raw/**/*.mp4` names, in order of their names.

    A text file beside a video, `a.txt` beside `a.mp4`, is its caption.

    Raises:
        InputError: there is no such file.
    """
    files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    if not files:
        raise InputError(f"--videos={pattern}: no file is called so; put the pattern in quotes, or the shell reads it")
    root = _root(pattern)
    return [_source(file, root, *_beside(Path(file))) for file in files]


def listed(file: Path) -> list[Source]:
    """The videos of a list, `.csv` with a line of titles or `.jsonl`, of video, caption and perhaps prompt.

    Videos are named as they are seen from the list's folder.

    Raises:
        InputError: a line is wrong, by its number, or a video is named twice.
    """
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(f"{file}: a list of videos and captions is a .csv or a .jsonl file")
    text = read_text(file, MOST_OF_LIST)
    rows = _csv_rows(file, text) if file.suffix == ".csv" else _json_rows(file, text)
    found: dict[str, Source] = {}
    for line, row in rows:
        video, caption, prompt = _checked(row, f"{file}:{line}")
        source = _source(os.path.join(file.parent, video), str(file.parent), caption, prompt)
        if found.setdefault(source.name, source) is not source:
            raise InputError(f"{file}:{line}: {video} is there twice; name each video once")
    if not found:
        raise InputError(f"{file}: holds no video")
    return [found[name] for name in sorted(found)]


def _checked(row: dict[str, Any], where: str) -> tuple[str, str | None, str | None]:
    if unknown := [str(name) for name in row if name not in FIELDS]:
        raise InputError(f"{where}: {unknown[0]!r} is no field of a list; accepted are {', '.join(FIELDS)}")
    for name, value in row.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {name} is {value!r}; it must be a text")
        check_whole(value, f"{where}: {name}")
    if not (video := row.get("video", "").strip()) or "\0" in video:
        raise InputError(f"{where}: video is {video!r}; it must be the name of a file")
    return video, _text(row.get("caption")), _text(row.get("prompt"))


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{file}:{reader.line_num}: has not as many values as the first line has titles")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: no CSV ({error})") from None


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = parse_json(line, f"{file}:{number}")
            if not isinstance(row, dict):
                raise InputError(f"{file}:{number}: must be a JSON object in braces")
            yield number, row


def _text(value: str | None) -> str | None:
    return " ".join((value or "").split()) or None


def _beside(video: Path) -> tuple[str | None, None]:
    file = video.with_suffix(".txt")
    return (_text(read_text(file, MOST)) if file.is_file() else None), None


def _source(path: str, root: str, caption: str | None, prompt: str | None) -> Source:
    name = os.path.relpath(path, root or ".")
    check_whole(name, f"the name {name!a}")
    if name.startswith(os.pardir):
        raise InputError(f"{path}: lies outside {root or '.'}; all videos must lie below the folder of their list")
    # What is not there is told of when it is opened, as all that is wrong with a file.
    status = os.stat(path) if os.path.isfile(path) else None
    known = {} if status is None else {"size": status.st_size, "changed": status.st_mtime_ns}
    return Source(Path(name).as_posix(), os.path.abspath(path), caption, prompt, **known)


def _root(pattern: str) -> str:
    """The folder of a pattern that holds no wildcard."""
    parts: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return os.path.join(*parts) if parts else ""
