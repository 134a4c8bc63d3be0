"""Reads command lines with the parsers of the commands themselves, and runs nothing.

    python tests/command_lines.py < LINES     a JSON list of lists of words, such as ["cinema_jax.train", "--help"]

prints a JSON list of [exit status, standard output, standard error], in order. Configs are loaded with what their line
changes. Each line is read in a fork of this process, because all commands define their flags in one place.
"""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read(lines: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of every line, read in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], cwd=ROOT, env=environment, input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


def _in_fork(words: list[str]) -> tuple[int, str, str]:
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        with os.fdopen(reading) as result:
            told = result.read()
        os.waitpid(pid, 0)
        return tuple(json.loads(told))
    out, err = io.StringIO(), io.StringIO()
    status = 0
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
        json.dump([status, out.getvalue(), err.getvalue()], result)
    os._exit(0)


def _main() -> None:
    # With it, no command starts itself anew.
    os.environ.setdefault("GLIBC_TUNABLES", "")
    from absl import flags
    from ml_collections import config_flags  # noqa: F401

    from cinema_jax import command, config
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
