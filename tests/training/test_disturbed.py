"""A run of two processes that stop, are told to stop, are killed and are slow: how it ends, and what becomes of it."""

import functools
import re
import signal

import numpy as np
import pytest
from float64 import STEPS
from launched import HANG, checkpoints, rows, state, train

from cinema_jax.experiment.checkpoint import complete_steps

# The stage that compiles fastest; that `finetune` goes on in float64 as well says test_hosts.py.
disturbed = functools.partial(train, slices="v5p:2x2x2, mllm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run undisturbed."""
    workdir = tmp_path_factory.mktemp("disturbed") / "whole"
    assert [status for status, _ in disturbed(workdir)] == [0, 0]
    return workdir


def test_disturbed_runs_end_as_they_should_and_go_on_to_the_same_bits(whole):
    run = whole.with_name("disturbed")
    saved = lambda: max(complete_steps(checkpoints(run)), default=0)  # noqa: E731

    (status, said), _ = disturbed(run, "stop", 3, "1")
    assert status == 1
    waited = rf"waited more than {HANG} s in (the data of )?step \d of mllm"
    silent = r"process 1 of 2 \(.+\) gives no sign of life for \d+ s; its last was in .*step \d of mllm"
    assert re.search(rf"error: process 0 of 2 \(.+\) {waited}; {silent}", said)

    before = saved()
    ended = disturbed(run, "term", 1, "1")
    assert [status for status, _ in ended] == [128 + signal.SIGTERM] * 2
    stopped = r"stopped by SIGTERM after step (\d) of mllm; the same command goes on"
    assert {int(re.search(stopped, said)[1]) for _, said in ended} == {saved()}
    assert before < saved() < STEPS

    (killed, _), (status, said) = disturbed(run, "saving", 1, "0")
    assert killed == -signal.SIGKILL
    assert status == 1
    assert re.search(r"error: process 0 of 2 \(.+\), by which all others meet, is gone or out of reach; the same", said)

    ended = disturbed(run, "slow", 1, "1")
    assert [status for status, _ in ended] == [0, 0]
    assert re.search(r"all devices waited for the data of process 1 of 2 \(.+\) in \d+ % of the time", ended[0][1])
    expected, found = state(whole), state(run)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    assert rows(run) == rows(whole)
