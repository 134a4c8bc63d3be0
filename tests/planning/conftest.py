"""Topologies of TPUs that are not here, in the test's own process."""

import os

import pytest
from tiny import TPU_ENVIRONMENT


@pytest.fixture(scope="session")
def tpus():
    """libtpu, told not to look for any."""
    pytest.importorskip("libtpu", reason="planning needs libtpu (pip install libtpu)")
    os.environ.update(TPU_ENVIRONMENT)
