"""What the tests of several devices and of several processes compare with."""

import subprocess
import sys
from pathlib import Path

import float64
import pytest
from hosts import environment


@pytest.fixture(scope="session")
def meshes(tmp_path_factory) -> Path:
    """The folder in which `float64.py` has left its steps on every mesh."""
    folder = tmp_path_factory.mktemp("float64")
    float64.write_frozen(folder)
    done = subprocess.run(
        [sys.executable, float64.__file__, folder],
        env=environment(folder, devices=8),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder
