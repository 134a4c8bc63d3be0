"""What the tests of several devices and of several processes compare with."""

import os
import subprocess
import sys
from pathlib import Path

import float64
import pytest
from filelock import FileLock
from hosts import environment


@pytest.fixture(scope="session")
def meshes(tmp_path_factory) -> Path:
    """The folder in which `float64.py` has left its steps on every mesh: once for all workers of this session."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "float64"
    with FileLock(f"{folder}.lock"):
        # The last file that is written.
        if not (folder / "closing.npz").exists():
            folder.mkdir(exist_ok=True)
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
