"""The same global batches, augmentation and noise from any number of hosts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.diffusion.flow import logit_normal_times, sample_noise
from cinema_jax.experiment.run import Run
from cinema_jax.training.state import sample_keys

BATCH = 4


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    run = Run.open(tiny_config(), tmp_path_factory.mktemp("run"))
    latents = np.random.default_rng(0).standard_normal((6, 2, 4, 4, 4), np.float32)
    return Mixture((Examples(run.source("train"), run.preprocessor(), range(6), latents),))


def host_batches(examples, hosts, host):
    """What one of several hosts, whose rows are not neighbours, loads for steps 1 and 2, and draws for them."""
    loader = Loader(
        examples.sizes,
        functools.partial(examples.make, Examples.finetune),
        LoaderConfig(BATCH, seed=3, num_threads=1),
        rows=range(host, BATCH, hosts),
    )
    key = jax.random.key_data(jax.random.key(3))
    for _, batch in loader.steps(1, 3):
        keys = sample_keys(key, jnp.asarray(batch["index"]))
        drawn = {"times": logit_normal_times(keys), "noise": sample_noise(keys, batch["latents"].shape[1:])}
        yield {name: np.asarray(x) for name, x in {**batch, **drawn}.items()}


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_hosts(examples, hosts):
    parts = zip(*(host_batches(examples, hosts, host) for host in range(hosts)), strict=True)
    for whole, pieces in zip(host_batches(examples, 1, 0), parts, strict=True):
        for name, expected in whole.items():
            for host, piece in enumerate(pieces):
                np.testing.assert_array_equal(piece[name], expected[host::hosts], err_msg=name)
