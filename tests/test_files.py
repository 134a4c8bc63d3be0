"""What comes from outside is read with limits, and what is written is whole or not there."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from tiny import process_environment

from cinema_jax.config import default, parse
from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs import files

WRONG = {
    "no JSON": (b"{", "cannot be read as JSON"),
    "nothing": (b"", "cannot be read as JSON"),
    "a list": (b"[]", "holds no object with fields"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    "Latin-1": (b'{"a": "\xe9"}', "not UTF-8 text"),
    "NaN": (b'{"a": {"b": [0, NaN]}}', r"a\.b\[1\] is NaN"),
    "infinity": (b'{"a": -Infinity}', "a is -Infinity"),
    "too large a fraction": (b'{"a": 1e999}', "a is 1e999, which is too large"),
    "too large a number": (b'{"a": ' + b"9" * 5000 + b"}", "a is a number of 5000 digits"),
    "a field twice": (b'{"a": {"b": 1, "b": 2}}', r"a\.b is there twice"),
    "half a character": (b'{"a": ["\\ud800"]}', r"a\[0\] holds half a character"),
    "half a character in a name": (b'{"\\udc00": 1}', "name holds half a character"),
    "deep": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deeply"),
    "very deep": (b"[" * 200_000, "nested too deeply"),
    "large": (b'{"a": "' + b"x" * 2000 + b'"}', "larger than 1000 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_json_that_is_not_accepted_is_named_by_file_and_field(name, tmp_path):
    data, message = WRONG[name]
    file = tmp_path / "x.json"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        files.read_json(file, 1000 if name == "large" else files.MOST)
    assert str(caught.value).startswith(str(file))


def test_json_that_is_unusual_and_right_is_read(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00", "b": 1e30, "c": 1000000000000000019884624838656}')
    assert files.read_json(file) == {"a": "😀", "b": 1e30, "c": 1000000000000000019884624838656}


def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for file in (tmp_path / "pipe.json", "/dev/zero", "/dev/stdin"):
        with pytest.raises(InputError, match=r"pipe or device|no such file|cannot be looked up"):
            files.check_regular(file)
    with pytest.raises(InputError, match="this is a folder"):
        files.check_regular(tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    files.write_json(file, {"a": 1})
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~_umask()

    def fail() -> None:
        with files.whole_file(file) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files.read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_planted_links_are_not_followed_by_what_is_written(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    file = tmp_path / "x.json"
    for name in ("x.json", "x.partial", "x.json.partial", ".x.json.partial"):
        (tmp_path / name).symlink_to(victim)
    files.write_json(file, {"a": 1})
    assert victim.read_text() == "mine"
    assert not file.is_symlink()


def test_a_folder_for_scratch_that_somebody_else_made_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"mine-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not a folder of this user alone"):
        files.own_folder("mine")
    assert files.own_folder("other") == tmp_path / f"other-{os.getuid()}"


DYING = """
import os, signal, sys
from pathlib import Path
from cinema_jax.inputs.files import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "video.mp4").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_goes_and_what_a_living_one_has_stays(tmp_path):
    command = [sys.executable, "-c", DYING, str(tmp_path / "o.mp4")]
    assert subprocess.run(command, env=process_environment(), check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".o.mp4.*")
    # As old as one that no process is just about to hold.
    os.utime(left, (0, 0))
    with files.scratch(tmp_path / "a.mp4") as living:
        os.utime(living, (0, 0))
        with files.scratch(tmp_path / "other.mp4"):
            assert living.is_dir()
            assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_only_what_lies_in_a_folder_is_read_from_it(tmp_path):
    folder = tmp_path / "cache" / "snapshots" / "abc"
    for name in ("cache/snapshots/abc", "cache/blobs", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cache/blobs/1").write_text("blob")
    (tmp_path / "elsewhere/secret").write_text("secret")
    (folder / "vocab.json").symlink_to("../../blobs/1")
    (folder / "merges.txt").symlink_to(tmp_path / "elsewhere/secret")
    (folder / "own.txt").write_text("own")
    (folder / "alias.txt").symlink_to("own.txt")
    assert files.within(folder, folder / "vocab.json").read_text() == "blob"
    assert files.within(folder, folder / "alias.txt").read_text() == "own"
    for name in ("merges.txt", "../../../elsewhere/secret", str(tmp_path / "elsewhere/secret")):
        with pytest.raises(InputError, match="leads out of"):
            files.within(folder, folder / name)


class PanicException(BaseException):
    """As Rust's panics come out of a library: no `Exception`."""


@pytest.mark.parametrize(
    "error", [IndexError(0), AttributeError("no 'x'"), MemoryError(), RecursionError("deep"), PanicException("a panic")]
)
def test_whatever_a_library_raises_becomes_one_sentence_with_the_file(error):
    said = str(error) or type(error).__name__
    with pytest.raises(InputError, match=rf"^x\.mp4: damaged \(.*{said}"), fault_of("x.mp4: damaged"):
        raise error


def test_an_interruption_is_no_fault_of_the_input():
    with pytest.raises(KeyboardInterrupt), fault_of("x.mp4"):
        raise KeyboardInterrupt


SIZES = {
    "condition.mllm_tokens": 10**9,
    "condition.mllm_patches": 10**9,
    "data.frames": 4 * 10**8 + 1,
    "data.height": 16 * 10**6,
    "data.max_references": 10**6,
    "vae_model.num_res_blocks": 100,
    "dit_model.num_layers": 10**6,
    "finetune.batch_size": 10**9,
    "finetune.steps": 10**12,
    "finetune.optimizer.learning_rate": 10**400,
}


@pytest.mark.parametrize("field", SIZES)
def test_sizes_that_no_machine_has_are_refused_at_once(field):
    values = default().to_dict()
    *sections, name = field.split(".")
    holder = values
    for section in sections:
        holder = holder[section]
    holder[name] = SIZES[field]
    with pytest.raises(InputError, match=f"config.{field}"):
        parse(values)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
