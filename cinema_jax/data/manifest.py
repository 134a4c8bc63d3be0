"""`manifest.jsonl`: reading and checking the description of a folder of clips before anything is trained on it."""

import functools
import json
import os
import stat
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import MOST_OF_LIST, parse_json, read_text
from cinema_jax.inputs.texts import check_whole

NAME = "manifest.jsonl"
# All problems are collected; more than this many lines help nobody.
MAX_PROBLEMS = 10
ENTRY_FIELDS = ("id", "video", "start", "end", "group", "caption", "prompt", "references")
REFERENCE_FIELDS = ("image", "mask", "video", "frame", "box", "subject", "noun", "same_clip")


@dataclass(frozen=True)
class ReferenceEntry:
    """Where one picture of one subject comes from: an image file, or a box in a frame of a video."""

    subject: str
    noun: str | None
    # Image file, or None for a frame of `video`.
    image: Path | None
    # Mask file of the image's size.
    mask: Path | None
    video: Path | None
    frame: int
    # x0, y0, x1, y1 in pixels of the upright picture, x1 and y1 not included. None: all of it.
    box: tuple[int, int, int, int] | None
    # Whether it is cut out of the clip that it goes with: as said, or else a frame of the same video is.
    same_clip: bool


@dataclass(frozen=True)
class Entry:
    """One line of the manifest."""

    # Given, or made from video and start; unique.
    id: str
    video: Path
    # The clip is this part of the video, in seconds; `end` None: to its end.
    start: float
    end: float | None
    # Clips of one group are held out together: given, or the video as the line names it.
    group: str
    caption: str
    prompt: str
    references: tuple[ReferenceEntry, ...]
    # Of the manifest, from 1.
    line: int


class _Problem(Exception):
    """What is wrong with one line; collected, and reported with the others."""


# Finds a file by its name in a manifest; raises _Problem, or OSError.
Find = Callable[[str], Path]


def manifest_file(path: str | Path) -> Path:
    """The `manifest.jsonl` of a folder, or the manifest (any `.jsonl`) itself; its videos lie in its folder."""
    path = Path(path)
    return path if path.suffix == ".jsonl" and not path.is_dir() else path / NAME


def read_manifest(path: str | Path, max_references: int, follow_links: bool = False) -> tuple[Entry, ...]:
    """Reads a manifest, as `manifest_file` finds it, and checks every line of it.

    With `follow_links` its files may be symbolic links that lead out of its folder, as in the cache of a hub.

    Raises one `InputError` that lists (up to 10) problems, each with file, line, field, value and what is accepted:
    text that is no JSON, missing, unknown or badly typed fields, files that do not exist or lie outside the folder
    (also by a symbolic link), ids used twice, parts of one video in two groups, and more than `max_references` subjects
    on a line.
    """
    path = manifest_file(path)
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if not path.is_file():
        raise InputError(f"{path}: no such file; a dataset folder needs a {NAME} with one JSON object a line")
    # JSON Lines end at line feeds alone: captions hold U+2028 and the like, at which `splitlines` would cut too.
    lines = read_text(path, MOST_OF_LIST).split("\n")
    find = _finder(folder.resolve(), follow_links)
    entries: list[Entry] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    first: dict[Path, Entry] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = _entry(find, text, number, max_references)
            if entry.id in seen:
                raise _Problem(f'id "{entry.id}" is also on line {seen[entry.id]}; give each line its own "id"')
            seen[entry.id] = number
            if (other := first.setdefault(entry.video, entry)).group != entry.group:
                raise _Problem(
                    f'is of group "{entry.group}", but line {other.line}, of the same video, of "{other.group}"; all '
                    'lines of a video need the same "group"'
                )
            entries.append(entry)
        except _Problem as problem:
            problems.append(f"{path}:{number}: {problem}")
    if problems:
        more = [f"... and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise InputError("\n".join(problems[:MAX_PROBLEMS] + more))
    if not entries:
        raise InputError(f"{path}: holds no example; write one JSON object a line")
    return tuple(entries)


def _entry(find: Find, text: str, line: int, max_references: int) -> Entry:
    try:
        record = parse_json(text, "the line")
    except InputError as error:
        raise _Problem(str(error)) from None
    if not isinstance(record, dict):
        raise _Problem(f"must be a JSON object in braces, not {_shown(record)}")
    _known(record, ENTRY_FIELDS, "")
    video = _file(find, record, "video", "")
    start = _seconds(record, "start") or 0.0
    end = _seconds(record, "end")
    if end is not None and end <= start:
        raise _Problem(f'"end" is {end:g}; it must be after "start" ({start:g} seconds)')
    caption = _text(record, "caption", "")
    references = record.get("references", [])
    if not isinstance(references, list):
        raise _Problem(f'"references" is {_shown(references)}; it must be a list of objects')
    parsed = tuple(_reference(find, item, f"references[{i}].", video) for i, item in enumerate(references))
    subjects = {reference.subject for reference in parsed}
    if len(subjects) > max_references:
        raise _Problem(f'"references" names {len(subjects)} subjects; at most {max_references} are configured')
    return Entry(
        id=_text(record, "id", "") if "id" in record else f"{record['video']}@{start:g}",
        video=video,
        start=start,
        end=end,
        group=_text(record, "group", "") if "group" in record else Path(record["video"]).as_posix(),
        caption=caption,
        prompt=_text(record, "prompt", "") if "prompt" in record else caption,
        references=parsed,
        line=line,
    )


def _reference(find: Find, record: object, prefix: str, clip: Path) -> ReferenceEntry:
    if not isinstance(record, dict):
        raise _Problem(f'"{prefix[:-1]}" is {_shown(record)}; it must be an object such as {{"image": "a.png", ...}}')
    _known(record, REFERENCE_FIELDS, prefix)
    if ("image" in record) == ("video" in record):
        raise _Problem(f'"{prefix[:-1]}" must have either "image" or "video" and "frame"')
    if "video" in record and "mask" in record:
        raise _Problem(f'"{prefix}mask" goes with "image" only; a frame of a video takes a "box"')
    if "image" in record and "frame" in record:
        raise _Problem(f'"{prefix}frame" goes with "video" only')
    if not isinstance(same_clip := record.get("same_clip", False), bool):
        raise _Problem(f'"{prefix}same_clip" is {_shown(same_clip)}; it must be true or false')
    video = _file(find, record, "video", prefix) if "video" in record else None
    return ReferenceEntry(
        subject=_text(record, "subject", prefix),
        noun=_text(record, "noun", prefix) if "noun" in record else None,
        image=_file(find, record, "image", prefix) if "image" in record else None,
        mask=_file(find, record, "mask", prefix) if "mask" in record else None,
        video=video,
        frame=_frame(record, prefix) if "video" in record else 0,
        box=_box(record["box"], f"{prefix}box") if "box" in record else None,
        same_clip=same_clip if "same_clip" in record else video == clip,
    )


def _known(record: dict, fields: tuple[str, ...], prefix: str) -> None:
    for field in record:
        if field not in fields:
            raise _Problem(f'unknown field "{prefix}{field}"; accepted are {", ".join(fields)}')


def _required(record: dict, field: str, prefix: str) -> object:
    if field not in record:
        raise _Problem(f'field "{prefix}{field}" is missing')
    return record[field]


def _text(record: dict, field: str, prefix: str) -> str:
    value = _required(record, field, prefix)
    if not isinstance(value, str) or not value.strip():
        raise _Problem(f'"{prefix}{field}" is {_shown(value)}; it must be text that is not empty')
    try:
        check_whole(value, f'"{prefix}{field}"')
    except InputError as error:
        raise _Problem(str(error)) from None
    return value


def _file(find: Find, record: dict, field: str, prefix: str) -> Path:
    name = _text(record, field, prefix)
    if "\0" in name:
        raise _Problem(f'"{prefix}{field}" is {_shown(name)}; a path has no zero bytes')
    try:
        return find(name)
    except (OSError, RuntimeError) as error:
        wrong = f", which cannot be looked up ({error})"
    except _Problem as problem:
        wrong = str(problem)
    raise _Problem(f'"{prefix}{field}" is {_shown(name)}{wrong}') from None


def _finder(root: Path, follow_links: bool) -> Find:
    """What finds the files of the folder `root`, which is resolved, by the names in its manifest."""
    # Resolving looks at every folder on the way, and most files share theirs.
    real = functools.cache(os.path.realpath)
    inside = os.path.join(root, "")

    def find(name: str) -> Path:
        folder, last = os.path.split(os.path.join(root, name))
        path = os.path.join(real(folder), last)
        # A manifest from elsewhere must not read this machine's other files, by a link either.
        if not os.path.normpath(os.path.join(root, name)).startswith(inside):
            raise _Problem(", which leaves the dataset folder")
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise _Problem(_missing(root, name)) from None
        if stat.S_ISLNK(mode) or last in ("", ".", ".."):
            path = os.path.realpath(path)
            mode = os.stat(path).st_mode if os.path.exists(path) else 0
        if not path.startswith(inside) and not follow_links:
            raise _Problem(
                ", a symbolic link that leads out of the dataset folder; config.data.follow_links=True allows that"
            )
        if not stat.S_ISREG(mode):
            raise _Problem(", which is no file")
        return Path(path)

    return find


def _missing(root: Path, name: str) -> str:
    """What is wrong with the name of a file that is not there."""
    for form in ("NFC", "NFD"):
        if (other := unicodedata.normalize(form, name)) != name and (root / other).is_file():
            return f"; the file's name is in Unicode's form {form}, which looks the same: rename one of them"
    return "; there is no such file in the dataset folder"


def _seconds(record: dict, field: str) -> float | None:
    if field not in record:
        return None
    value = record[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise _Problem(f'"{field}" is {_shown(value)}; it must be a number of seconds, at least 0')
    return float(value)


def _frame(record: dict, prefix: str) -> int:
    value = _required(record, "frame", prefix)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Problem(f'"{prefix}frame" is {_shown(value)}; it must be a frame number, a whole number from 0')
    return value


def _box(value: object, field: str) -> tuple[int, int, int, int]:
    whole = isinstance(value, list) and len(value) == 4 and all(type(side) is int for side in value)
    if not whole or not (0 <= value[0] < value[2] and 0 <= value[1] < value[3]):
        raise _Problem(f'"{field}" is {_shown(value)}; it must be [x0, y0, x1, y1] in pixels with x0 < x1 and y0 < y1')
    return tuple(value)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
