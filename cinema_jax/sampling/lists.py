"""Lists of videos to generate: files of JSON Lines, read and checked before anything is loaded."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError
from cinema_jax.inputs import places
from cinema_jax.inputs.files import MOST_OF_LIST, check_regular, parse_json, read_text, within
from cinema_jax.inputs.typed import checked

logger = logging.getLogger(__name__)

# What a video's file may end in; frames as PNG would be many files, of which some may be there.
SUFFIXES = (".mp4", ".gif")
# All problems are collected; more than this many lines help nobody.
MAX_PROBLEMS = 10


@dataclasses.dataclass(frozen=True)
class Line:
    """The fields of one line. What is None is as the command line or else the checkpoint says."""

    prompt: str
    # Files of pictures, by their paths from the list's folder, in which they lie.
    references: list[str] = dataclasses.field(default_factory=list)
    seed: int = 0
    negative_prompt: str = ""
    expand_prompt: bool | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    # Name of the video's file, .mp4 or .gif; without it the number of the line, 0001.mp4.
    output: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line that is right as far as can be told without the checkpoint."""

    # File and number of the line, for messages.
    place: str
    line: Line
    # The references' files.
    pictures: tuple[Path, ...]
    # The name of the video's file.
    output: str

    @property
    def size(self) -> dict[str, int]:
        """What the line says of the video's size."""
        size = {name: getattr(self.line, name) for name in ("frames", "height", "width")}
        return {name: value for name, value in size.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Found:
    """The lines of a list, and how many others were left out because they are wrong."""

    file: Path
    entries: tuple[Entry, ...]
    left_out: int = 0


def check_folder(folder: str) -> Path:
    """The folder of a list's videos, which need not be there yet. Raises `InputError` where it cannot be."""
    path = Path(folder)
    if "\0" in folder or not folder:
        raise InputError(f"--output is {folder!r}; with --requests it is the folder of the videos")
    places.check_place(path / "x", "x")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; with --requests, --output is the folder of the videos")
    return path


def read(file: Path, keep_going: bool = False) -> Found:
    """Read and check a list, whose pictures lie in its folder.

    Args:
        keep_going: leave out lines that are wrong, with a warning for each.

    Raises:
        InputError: the file cannot be read, holds no request, or a line is wrong; of lines (up to 10) each is named,
            with its file, number, field, value, and what is accepted.
    """
    entries, problems = [], []
    outputs: dict[str, int] = {}
    for number, text in _lines(file):
        try:
            entry = _entry(file, number, text)
            # Some file systems take names of other case for the same.
            if (other := outputs.setdefault(entry.output.lower(), number)) != number:
                raise InputError(f"{entry.place}: output is {entry.output}, which is also that of line {other}")
            entries.append(entry)
        except InputError as error:
            problems.append(str(error))
    if not entries and not problems:
        raise InputError(f"{file} holds no request; write one JSON object a line, with a prompt and references")
    refuse(problems, keep_going)
    return Found(file, tuple(entries), len(problems))


def refuse(problems: list[str], keep_going: bool) -> None:
    """Raise one `InputError` of all problems; with `keep_going` warn of each."""
    if problems and not keep_going:
        more = [f"... and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise InputError("\n".join(problems[:MAX_PROBLEMS] + more))
    for problem in problems:
        logger.warning("left out: %s", problem)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    # JSON Lines end at line feeds alone: prompts may hold U+2028 and the like, at which `splitlines` would cut too.
    for number, text in enumerate(read_text(file, MOST_OF_LIST).split("\n"), 1):
        if text.strip():
            yield number, text


def _entry(file: Path, number: int, text: str) -> Entry:
    place = f"{file}:{number}"
    values = parse_json(text, place)
    if not isinstance(values, dict):
        raise InputError(f'{place}: must be a JSON object in braces, such as {{"prompt": "...", "references": []}}')
    fields = [field.name for field in dataclasses.fields(Line)]
    if unknown := [name for name in values if name not in fields]:
        raise InputError(f"{place}: unknown field {unknown[0][:60]!r}; accepted are {', '.join(fields)}")
    line: Line = checked(values, Line, f"{place}: ")
    if not line.prompt.strip():
        raise InputError(f"{place}: prompt is empty; say what happens in the video")
    if not 0 <= line.seed < 2**32:
        raise InputError(f"{place}: seed is {line.seed}; it must be from 0 to {2**32 - 1}")
    pictures = tuple(_picture(file, name, f"{place}: references[{i}]") for i, name in enumerate(line.references))
    return Entry(place, line, pictures, _output(line, number, place))


def _picture(file: Path, name: str, place: str) -> Path:
    """A list from elsewhere reads no other files of this machine."""
    try:
        path = within(file.absolute().parent, file.absolute().parent / name)
        check_regular(path, "image file")
    except (InputError, ValueError) as error:
        raise InputError(f"{place} is {name[:200]!r}: {error}") from None
    return path


def _output(line: Line, number: int, place: str) -> str:
    name = line.output
    if name is None:
        return f"{number:04d}{SUFFIXES[0]}"
    plain = name == Path(name).name and not name.startswith(".") and name.isprintable()
    if not plain or Path(name).suffix not in SUFFIXES:
        accepted = f"the name of an {' or '.join(SUFFIXES)} file, without folders"
        raise InputError(f"{place}: output is {name[:100]!r}; it must be {accepted}")
    return name


def as_json(entry: Entry) -> dict[str, Any]:
    """What of a line decides its video, beside the pictures and the size."""
    return {name: getattr(entry.line, name) for name in ("prompt", "negative_prompt", "seed")}
