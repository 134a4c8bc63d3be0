"""A text file with one caption a line: what the AlignerNet can learn from without videos, as in KOSMOS-G."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cinema_jax.errors import InputError


class Captions(Sequence[str]):
    """The lines of a UTF-8 text file that are not blank, each read when it is asked for: there may be millions.

    Raises:
        InputError: no such file, a line that is no UTF-8, or no caption at all.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"config.data.captions is {path}; no such file")
        places, lines, place, seen = [], [], 0, hashlib.sha256()
        with self.path.open("rb") as file:
            # Split at line feeds alone.
            for number, line in enumerate(file, 1):
                try:
                    if _text(line):
                        places.append(place)
                        lines.append(number)
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}:{number}: not UTF-8 text (byte {error.start} of the line)") from None
                place += len(line)
                seen.update(line)
        if not places:
            raise InputError(f"{path}: holds no caption; write one a line")
        # Where each caption begins in the file, and its line there, from 1.
        self._places, self.lines = np.array(places), np.array(lines)
        # Of the whole file.
        self.digest = seen.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> str:
        with self.path.open("rb") as file:
            file.seek(int(self._places[index]))
            return _text(file.readline())


def _text(line: bytes) -> str:
    return line.decode("utf-8-sig").strip()
