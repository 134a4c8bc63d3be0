"""Reads command lines with the parsers of the commands themselves, and runs nothing.

    python tests/command_lines.py < LINES     a JSON list of lists of words, such as ["cinema_jax.train", "--help"]

prints a JSON list of [exit status, standard output, standard error], in order. Configs are loaded with what their line
changes. Each line is read in a fork of this process, because all commands define their flags in one place.

    python tests/command_lines.py --run FOLDER < LINES

runs them in FOLDER, with libraries that are loaded already, and adds the seconds that each took and what it should not
have touched: the network, or the numbers of any weights.
"""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
# Before all else on a path; not from `tiny`, which imports what a line may not.
WITHOUT_TORCH = str(ROOT / "tests/without_torch")
# Seconds after which a command that runs is killed.
PATIENCE = 30


def read(lines: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of every line, read in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([WITHOUT_TORCH, *sys.path])}
    done = subprocess.run(
        [sys.executable, __file__], cwd=ROOT, env=environment, input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


class Ended(NamedTuple):
    """How a command ended that was run; the seconds are the processor's."""

    status: int
    out: str
    err: str
    seconds: float
    touched: list[str]


def run(lines: Sequence[Sequence[str]], folder: Path) -> list[Ended]:
    """The same of every line that is run in a folder, in a fork of one process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([WITHOUT_TORCH, *sys.path])}
    done = subprocess.run(
        [sys.executable, __file__, "--run", str(folder)],
        cwd=ROOT,
        env=environment,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*one) for one in json.loads(done.stdout)]


def _guarded() -> list[str]:
    """What commands touch from now on of that which they should not."""
    import socket

    from cinema_jax.weights import stored, tensors

    touched: list[str] = []

    def refused(what: str) -> Callable[..., Any]:
        def call(*arguments: Any, **_: Any) -> Any:
            touched.append(f"{what}: {arguments[-1]!r}"[:200])
            raise AssertionError(touched[-1])

        return call

    socket.socket.connect = refused("the network")
    socket.getaddrinfo = refused("the network")
    stored.Stored.__getitem__ = refused("weights")
    tensors.Tensor.__getitem__ = refused("weights")
    return touched


def _in_fork(words: list[str], folder: str = "") -> tuple:
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with os.fdopen(reading) as result:
            told = result.read()
        os.waitpid(pid, 0)
        return tuple(json.loads(told or json.dumps([124, "", f"not ended after {PATIENCE} s", PATIENCE, []])))
    out, err = io.StringIO(), io.StringIO()
    status, touched, begun = 0, [], time.process_time()
    if folder:
        signal.alarm(PATIENCE)
        touched = _guarded()
        os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            sys.argv = words
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            status = 1
            traceback.print_exc()
    with os.fdopen(writing, "w") as result:
        more = [time.process_time() - begun, touched] if folder else []
        json.dump([status, out.getvalue(), err.getvalue(), *more], result)
    os._exit(0)


def _run_all(folder: str) -> None:
    """What takes long to import, once for all lines."""
    import gradio  # noqa: F401
    import jax  # noqa: F401

    from cinema_jax.evaluation import benchmark, opens2v, own, report  # noqa: F401
    from cinema_jax.exchange import exports, imports, inspection  # noqa: F401
    from cinema_jax.planning import planner  # noqa: F401
    from cinema_jax.sampling import many, pipeline  # noqa: F401
    from cinema_jax.training import beginning, check, loop, preparing  # noqa: F401
    from cinema_jax.web import page  # noqa: F401

    print(json.dumps([_in_fork(words, folder) for words in json.load(sys.stdin)]))


def _main() -> None:
    # With it, no command starts itself anew.
    os.environ.setdefault("GLIBC_TUNABLES", "")
    if sys.argv[1:2] == ["--run"]:
        return _run_all(sys.argv[2])
    from absl import flags
    from ml_collections import config_flags  # noqa: F401

    from cinema_jax import config
    from cinema_jax.commands import command
    from cinema_jax.data import images, output  # noqa: F401

    run = command.run

    def read_alone(main, parser=None, **settings) -> None:
        def nothing(*_) -> None:
            if parser or "config" not in flags.FLAGS:
                return
            values = flags.FLAGS["config"].value
            if not sys.argv[0].endswith("train.py"):
                # What `plan` does not read, and `prepare` is told by --manifest.
                values.data.path = values.data.path or "videos"
            config.parse(values)

        run(nothing, parser, **settings)

    command.run = read_alone
    results = [_in_fork(words) for words in json.load(sys.stdin)]
    print(json.dumps(results))


if __name__ == "__main__":
    _main()
