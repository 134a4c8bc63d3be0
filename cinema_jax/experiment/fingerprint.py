"""What tells one set of weights from another, without reading all of it."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from cinema_jax.experiment import parts
from cinema_jax.experiment.standing import Standing

# Of a large file, so many pieces of so many bytes are read.
_PIECES, _BYTES = 256, 4096


def fingerprint(standing: Standing, names: Iterable[str]) -> str:
    """A digest of parts' weights and tokenizers, and of the type that they are computed in.

    Of large files it knows the size and samples of the bytes, which training changes all over. It is the same on all
    machines that hold the same files, wherever these lie.

    Args:
        names: of the parts.
    """
    run = standing.run
    digest = hashlib.sha256(run.config.precision.encode())
    folders = {name: run.folder(name) for name in (*sorted(names), *parts.TOKENIZERS)}
    if standing.checkpoint is not None:
        folders["checkpoint"] = Path(standing.checkpoint)
    for name, folder in folders.items():
        digest.update(f"\n{name}".encode())
        for file in _files(folder) if folder is not None else ():
            digest.update(f"\n{file.relative_to(folder)}:{file.stat().st_size}:".encode())
            digest.update(_sample(file))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """What of a folder decides the weights; a part's folder may hold others' as well."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            yield file


def _sample(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _PIECES * _BYTES:
            return hashlib.sha256(stream.read()).digest()
        pieces = hashlib.sha256()
        for i in range(_PIECES):
            stream.seek(i * (size - _BYTES) // (_PIECES - 1), os.SEEK_SET)
            pieces.update(stream.read(_BYTES))
        return pieces.digest()
