"""How commands end: which troubles of storage launchers may start again after, and which stay."""

import errno
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from cinema_jax.commands import command
from cinema_jax.data.worker import Maker
from cinema_jax.errors import InputError, passing_error
from cinema_jax.experiment import parts


def ended(main, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status of a command that does `main`, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        command.run(main)
    return end.value.code, capsys.readouterr().err


def failing(error):
    def main():
        raise error

    return main


PASSING = {
    "a bucket's mount": (
        OSError(errno.EIO, "x", "/gcs/BUCKET/metrics.jsonl"),
        "/gcs/BUCKET/metrics.jsonl: Input/output",
    ),
    "a write": (OSError(errno.EIO, "x"), "the storage: Input/output error"),
    "NFS": (OSError(errno.ESTALE, "x", "/shared/5b"), "/shared/5b: Stale file handle"),
    "a soft mount": (TimeoutError(errno.ETIMEDOUT, "x", "/shared/5b"), "/shared/5b: Connection timed out"),
    "a mount that fell": (OSError(errno.ENOTCONN, "x", "/gcs/BUCKET"), "/gcs/BUCKET: Transport endpoint is not conn"),
    "a library": (RuntimeError("UNAVAILABLE: writing [OS error 5: Input/output error]"), "the storage: Input/output"),
}
LASTING = {
    "full": OSError(errno.ENOSPC, "x", "/gcs/BUCKET/5b"),
    "quota": OSError(errno.EDQUOT, "x", "/shared/5b"),
    "read-only": OSError(errno.EROFS, "x", "/shared/5b"),
    "forbidden": PermissionError(errno.EACCES, "x", "/shared/5b"),
    "forbidden, by a library": ValueError("open failed [OS error 13: Permission denied]"),
    "full, by a library": ValueError("write failed: No space left on device"),
}


@pytest.mark.parametrize(("error", "told"), PASSING.values(), ids=PASSING)
def test_trouble_that_passes_ends_with_a_sentence_and_1(error, told, monkeypatch, capsys):
    code, said = ended(failing(error), monkeypatch, capsys)
    assert (code, said.count("\n")) == (1, 1), said
    assert said.startswith(f"error: {told}")
    assert "which may pass" in said


@pytest.mark.parametrize("error", LASTING.values(), ids=LASTING)
def test_trouble_that_stays_ends_with_a_sentence_and_2(error, monkeypatch, capsys):
    code, said = ended(failing(error), monkeypatch, capsys)
    assert (code, said.count("\n")) == (2, 1), said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("UNAVAILABLE: PERMISSION_DENIED: the token has expired: Permission denied"),
        ConnectionResetError(errno.ECONNRESET, "a socket's, without a file"),
    ],
)
def test_what_is_not_storage_is_not_told_as_such(error):
    assert command.storage_trouble(error) is None
    assert command.passing_trouble(error) is None


def unreadable(monkeypatch, number: int) -> None:
    """Reading any file as text fails."""

    def read_text(self, *_, **__):
        raise OSError(number, "x", str(self))

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(Path, "open", read_text)


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 1), (errno.EISDIR, 2)])
def test_a_config_that_cannot_be_read_for_now_is_not_a_wrong_one(number, code, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        unreadable(patched, number)
        assert ended(lambda: parts.read_json(Path(__file__)), monkeypatch, capsys)[0] == code


def test_bad_input_that_came_of_trouble_which_passes_ends_with_1(monkeypatch, capsys):
    def main():
        try:
            raise OSError(errno.EIO, "x", "/gcs/BUCKET/weights")
        except OSError:
            raise InputError("the folder cannot be read") from None

    assert ended(main, monkeypatch, capsys)[0] == 1


def test_records_out_of_reach_for_now_are_not_replaced():
    """They would be counted as damaged, and end the run as bad input."""

    def example(entry, index, rng):
        try:
            raise OSError(errno.EIO, "x", "/gcs/BUCKET/data")
        except OSError:
            raise InputError("this record cannot be read") from None

    with pytest.raises(OSError, match="/gcs/BUCKET/data"):
        Maker(example, (4,), 0, "train")(0, 0)


def test_a_video_cut_short_is_still_replaced():
    """FFmpeg says EIO of it, too."""

    def example(entry, index, rng):
        if entry == 0:
            try:
                av.error.err_check(-errno.EIO)
            except OSError:
                raise InputError("this video cannot be decoded") from None
        return {"x": np.float32(0)}

    _, failures = Maker(example, (4,), 0, "train")(0, 0)
    assert json.dumps(failures) == '[[0, 0, "this video cannot be decoded"]]'


def test_causes_that_lead_to_themselves_are_looked_at_once():
    first, second, storage = ValueError("a"), ValueError("b"), OSError(errno.EIO, "x", "/gcs/BUCKET/a")
    first.__cause__, second.__cause__ = second, first
    for look in (passing_error, command.storage_trouble, command.passing_trouble):
        assert look(first) is None
    first.__cause__ = first
    assert passing_error(first) is None
    second.__cause__ = storage
    storage.__context__ = second
    assert passing_error(second) is storage
