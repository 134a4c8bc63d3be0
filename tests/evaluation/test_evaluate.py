"""The command `evaluate`: evaluate_cases.py in a process of its own, because other commands define the same flags."""

import subprocess
import sys
from pathlib import Path

from tiny import process_environment


def test_the_command():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "evaluate_cases.py"]
    folder = Path(__file__).parent
    done = subprocess.run(
        command, cwd=folder, env=process_environment(), capture_output=True, text=True, check=False, timeout=1200
    )
    # 5 is the exit code where no test is found.
    assert done.returncode == 0, done.stdout
