"""Topologies of TPUs that are not here, in the test's own process."""

import pytest
from tiny import environment_of_tpus


@pytest.fixture(scope="module")
def tpus():
    """libtpu, told not to look for any."""
    pytest.importorskip("libtpu", reason="planning needs libtpu (pip install libtpu)")
    with environment_of_tpus():
        yield
