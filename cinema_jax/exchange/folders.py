"""Folders that several processes write together and that have their name only when they are complete."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax

from cinema_jax.devices.distributed import together
from cinema_jax.errors import InputError
from cinema_jax.inputs.places import check_place


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which every process must see; it is renamed to `output` when all have left the block.

    What an earlier, killed one has left under the temporary name is removed, and so is what an error leaves.

    Raises:
        InputError: `output` is there and not empty.
    """
    check_new(output)
    partial = output.with_name(output.name + ".partial").absolute()
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
        except FileExistsError:
            # A link, say: nothing is written where that leads.
            raise InputError(f"{partial} is in the way; remove it") from None
    together("begin")
    try:
        yield partial
    except BaseException:
        # Another process may still be writing.
        if jax.process_count() == 1:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    together("end")
    if first:
        partial.replace(output)
    together("renamed")


def check_new(output: Path) -> None:
    """Raises `InputError` where a folder is there already and not empty, or cannot be made."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already; name a new folder")
    check_place(output, f"{output.name}.partial")
