"""What processes of a run print, and with which status they end, when something happens to one of them."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import process_environment

SCRIPT, COUNT = Path(__file__).with_name("peered.py"), 3


@pytest.mark.parametrize(
    ("moment", "process", "own", "status", "told"),
    [
        ("data", 1, 2, 2, r"process 1 of 3 \(.+\) ended: videos/7\.mp4: no such file"),
        (
            "disk",
            2,
            2,
            2,
            r"process 2 of 3 \(.+\) ended: checkpoints/8: No space left on device; what was saved before",
        ),
        ("full", 1, 2, 2, r"process 1 of 3 \(.+\) ended: .*File too large; what was saved before is intact"),
        ("term", 1, 143, 143, r"process 1 of 3 \(.+\) ended: stopped by SIGTERM between two stages' steps"),
        (
            "kill",
            1,
            -9,
            1,
            r"process 1 of 3 \(.+\) gives no sign of life for \d+ s; its last was in step 41 of finetune",
        ),
        (
            "kill",
            0,
            -9,
            1,
            r"process 0 of 3 \(.+\), by which all others meet, is gone or out of reach; the same command",
        ),
        ("hang", 1, 1, 1, r"process 1 of 3 \(.+\) is behind: it has been in step 41 of finetune for \d+ s"),
    ],
)
def test_what_happens_to_one_process_ends_the_others_with_its_name(moment, process, own, status, told, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        joined = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={COUNT}"]
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, moment, str(process), tmp_path / "saved", *joined, f"--process_id={i}"],
            env=process_environment() | {"GLIBC_TUNABLES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(COUNT)
    ]
    said = [each.communicate(timeout=120)[1] for each in started]
    for i, each in enumerate(started):
        assert each.returncode == (own if i == process else status), said[i]
        if i != process:
            assert re.search(f"error: .*{told}", said[i]), said[i]
