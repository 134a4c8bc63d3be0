"""The search for block sizes."""

import math

import pytest

from cinema_jax.errors import InputError
from cinema_jax.models.attention import tune


def test_the_fastest_blocks_that_fit_are_found():
    small, best, large = (tune.Blocks(size, size, size) for size in (256, 512, 1024))
    times = {small: 2.0, best: 1.0, large: math.inf}
    assert tune.fastest(times.__getitem__, times, "forward") == best


def test_blocks_of_which_none_fits_are_refused():
    with pytest.raises(InputError, match="forward: no blocks fit the memory of this cpu; take fewer heads"):
        tune.fastest(lambda blocks: math.inf, tune.CANDIDATES, "forward")


def test_a_call_is_timed():
    blocks = tune.Blocks(128, 128, 128)
    assert 0 < tune.seconds(blocks, blocks, tokens=128, heads=1, head_size=64) < math.inf


def test_without_a_tpu_one_sentence_says_so():
    with pytest.raises(InputError, match="tuning times kernels on a TPU, and JAX finds only a 'cpu' device here"):
        tune.main(tune._parser(["tune", "--tokens", "256", "--heads", "1", "--head-size", "64"]))
