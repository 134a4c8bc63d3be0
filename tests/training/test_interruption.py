"""What a signal gets for an answer, also while native code keeps the main thread."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import process_environment

SCRIPT = """
import hashlib
from cinema_jax.devices.interruption import Interruption

with Interruption() as interruption, {inside}:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**{log2})  # native code, without Python's lock
    print("finished", interruption.requested, flush=True)
"""


def started(inside: str, log2: int) -> subprocess.Popen:
    """A process in native code."""
    script = SCRIPT.format(inside=inside, log2=log2)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    # Only native code has work left to do.
    before = cpu_seconds(process.pid)
    while process.poll() is None and cpu_seconds(process.pid) < before + 0.1:
        time.sleep(0.02)
    return process


def cpu_seconds(pid: int) -> float:
    """What a process has spent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("inside", "answer"),
    [
        ("interruption.after_the_step()", "SIGTERM: stopping after this step; once more ends it now\n"),
        ("open('/dev/null')", "SIGTERM: stopping; once more ends it now\n"),
    ],
)
def test_a_signal_is_answered_before_native_code_is_done_and_a_second_one_ends_it(inside, answer):
    # Many minutes, were it not ended.
    process = started(inside, 30)
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == answer
    while process.poll() is None:
        # One that comes at once is the echo of the first.
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert out == ""
    assert err == "SIGTERM: ended; the same command goes on from the last checkpoint\n"


def test_the_echo_of_a_signal_does_not_end_the_step():
    process = started("interruption.after_the_step()", 22)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert out == f"finished {int(signal.SIGTERM)}\n"
    assert "stopped by SIGTERM after the last step of a stage" in err
