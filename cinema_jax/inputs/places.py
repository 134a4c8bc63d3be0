"""Whether files and folders that the user names can be made, before there is anything to write."""

import os
from pathlib import Path

from cinema_jax.errors import InputError

# Bytes of a name, where the file system does not say, and of a path.
_NAME_MAX, _PATH_MAX = 255, 4000


def check_place(path: Path, longest: str) -> None:
    """Checks that something can be made in the place of a path.

    Args:
        longest: the longest name that is made in the path's folder on the way.

    Raises:
        InputError: a name is too long, or the folder is none, cannot be made or may not be written to.
    """
    path = path.absolute()
    names = {part: part for part in path.parts} | {longest: path.name}
    _check_names(names, _NAME_MAX)
    if len(os.fsencode(path.parent)) + len(os.fsencode(longest)) > _PATH_MAX:
        raise InputError(f"{str(path)[:60]}...: this path has {len(os.fsencode(path))} bytes, which is too long")
    folder = path.parent
    # A link that leads nowhere is there, and no folder can be made of it.
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        what = "a symbolic link that leads nowhere" if folder.is_symlink() else "a file and not a folder"
        raise InputError(f"{path}: cannot be written, {folder} is {what}")
    _check_names(names, os.pathconf(folder, "PC_NAME_MAX"))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: no permission to write in {folder}")


def check_folder(path: Path) -> None:
    """Raises `InputError` where a folder is not there and cannot be made, or may not be written to."""
    check_place(path / "x", "x")


def check_workdir(path: Path) -> None:
    """The same of a training run's folder, which is on this machine."""
    # "gs://bucket/x" as a path is "gs:/bucket/x": a local folder that nobody meant.
    if str(path).startswith(("gs:", "s3:")):
        raise InputError(
            f"--workdir is in a bucket ({path}); name a folder: Cloud Storage FUSE makes /gcs/BUCKET of "
            "gs://BUCKET (gcsfuse --implicit-dirs --rename-dir-limit=1000000 /gcs), which launch/ does by itself"
        )
    check_folder(path)


def _check_names(names: dict[str, str], most: int) -> None:
    """Raises `InputError` where a name has more bytes than `most`; `names` says what each was made for."""
    for name, asked in names.items():
        if (length := len(os.fsencode(name))) > most:
            more = length - len(os.fsencode(asked))
            shown = asked if len(asked) <= 60 else f"{asked[:57]}..."
            raise InputError(f"{shown}: this name has {length - more} bytes; at most {most - more} can be written")
