import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import process_environment

from cinema_jax.config.learning_rate import learning_rate
from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.devices import sharding
from cinema_jax.training import state
from cinema_jax.training.optimizer import decayed, make_optimizer
from cinema_jax.training.step import Share, make_train_step

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.1, clip_norm=0.5)
PARAMS = {"net/kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "net/bias": np.ones(3, np.float32)}
FROZEN = {"scale": np.float32(2.0)}


def batch(start=0, size=8):
    index = np.arange(start, start + size, dtype=np.int32)
    return {"index": index, "x": np.sin(index[:, None] + np.arange(4, dtype=np.float32)).astype(np.float32)}


def noisy_loss(params, frozen, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    y = frozen["scale"] * batch["x"] @ params["net/kernel"] + params["net/bias"]
    return jnp.mean((y - noise) ** 2), {"mean": jnp.mean(y)}


@functools.cache
def compiled(loss, **options):
    """A train step, and a state on the host to start from."""
    optimizer = make_optimizer(CONFIG, steps=10)
    start = state.create(PARAMS, optimizer, sharding.make_mesh(), seed=3)
    return make_train_step(loss, optimizer, start, ema_decay=0.9, **options), jax.device_get(start)


def setup(loss=noisy_loss, **options):
    step, start = compiled(loss, **options)
    return step, sharding.place(start, sharding.make_mesh())


def arrays(tree):
    return jax.tree.map(np.asarray, tree)


def test_updates_are_those_of_optax_adamw():
    step, train = setup()
    key = jax.random.key(3)
    adamw = optax.chain(
        optax.clip_by_global_norm(CONFIG.clip_norm),
        optax.adamw(learning_rate(CONFIG, 10), 0.9, 0.95, weight_decay=0.1, mask=decayed),
    )

    @jax.jit
    def reference(params, opt_state, data):
        keys = jnp.stack([jax.random.fold_in(key, data["index"][i]) for i in range(8)])
        grads = jax.grad(lambda params: noisy_loss(params, FROZEN, data, keys)[0])(params)
        updates, opt_state = adamw.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, opt_state = PARAMS, adamw.init(PARAMS)
    for i in range(3):
        params, opt_state = reference(params, opt_state, batch(8 * i))
        train, _ = step(train, FROZEN, batch(8 * i))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), train.params, params)


def test_one_compilation_for_many_steps():
    traces = []

    def loss(*args):
        traces.append(None)
        return noisy_loss(*args)

    step, train = setup(loss)
    for i in range(3):
        train, _ = step(train, FROZEN, batch(8 * i))
    assert (len(traces), step._cache_size()) == (1, 1)


def test_microbatches_give_the_result_of_the_whole_batch():
    (whole, a), (parts, b) = setup(), setup(microbatches=4)
    (a, metrics_a), (b, metrics_b) = whole(a, FROZEN, batch()), parts(b, FROZEN, batch())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), (a, metrics_a), (b, metrics_b))


def loss_over_words(params, frozen, batch, keys):
    words = frozen["scale"] * batch["x"][:, :3] * params["net/bias"]
    real = (jnp.arange(3) < batch["lengths"][:, None]).astype(words.dtype)
    share = Share((words**2 * real).sum(1).mean(), real.sum(1).mean())
    return share, {"words": share}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8).filter(any), st.sampled_from([2, 4, 8]))
def test_samples_of_unequal_length_count_alike_however_the_batch_is_parted(lengths, microbatches):
    data = batch() | {"lengths": np.int32(lengths)}
    words, real = FROZEN["scale"] * data["x"][:, :3], np.arange(3) < data["lengths"][:, None]
    step, train = setup(loss_over_words, microbatches=microbatches)
    _, metrics = step(train, FROZEN, data)
    np.testing.assert_allclose(metrics["loss"], (words**2)[real].mean(), rtol=1e-5)
    gradient = 2 * (words**2 * real).sum(0) / real.sum()
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


def test_microbatches_must_divide_the_batch():
    step, train = setup(microbatches=3)
    with pytest.raises(ValueError, match="microbatches = 3 does not divide the batch of 8"):
        step(train, FROZEN, batch())


def test_order_of_rows_does_not_matter():
    step, a = setup()
    _, b = setup()
    order = np.random.default_rng(0).permutation(8)
    (a, _), (b, _) = step(a, FROZEN, batch()), step(b, FROZEN, jax.tree.map(lambda x: x[order], batch()))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a.params, b.params)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_update_that_is_not_finite_is_dropped_and_counted(poison):
    def loss(params, frozen, batch, keys):
        value, metrics = noisy_loss(params, frozen, batch, keys)
        if poison == "loss":
            return value + batch["bad"][0], metrics
        # The square root's slope at 0 is infinite, its value is not.
        return value + jnp.sqrt(jnp.where(jnp.isnan(batch["bad"][0]), 0 * params["net/bias"][0], 1.0)), metrics

    step, train = setup(loss)
    good, bad = {"bad": np.zeros(8, np.float32)}, {"bad": np.full(8, np.nan, np.float32)}
    train, _ = step(train, FROZEN, batch() | good)
    before = arrays(train)
    train, metrics = step(train, FROZEN, batch(8) | bad)
    jax.tree.map(
        np.testing.assert_array_equal,
        (train.params, train.ema, train.opt_state),
        (before.params, before.ema, before.opt_state),
    )
    assert (int(train.step), int(train.skipped), int(metrics["skipped"])) == (2, 1, 1)


def test_training_goes_on_after_a_dropped_update():
    def loss(params, frozen, batch, keys):
        value, metrics = noisy_loss(params, frozen, batch, keys)
        return value + batch["bad"][0], metrics

    step, train = setup(loss)
    train, _ = step(train, FROZEN, batch() | {"bad": np.full(8, np.inf, np.float32)})
    train, metrics = step(train, FROZEN, batch(8) | {"bad": np.zeros(8, np.float32)})
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(train.params["net/bias"], PARAMS["net/bias"])


def test_metrics_are_named():
    step, train = setup()
    _, metrics = step(train, FROZEN, batch())
    assert sorted(metrics) == ["clipped", "grad_norm", "grad_norm/net", "learning_rate", "loss", "mean", "skipped"]


def test_the_gradient_is_measured_in_each_part_and_clipping_is_counted():
    params = {"one/kernel": np.float32([3.0]), "one/bias": np.float32([4.0]), "two/bias": np.float32([12.0])}

    def loss(params, frozen, batch, keys):
        # The gradient is the parameters themselves, and 13 long, times what the batch says.
        return frozen * batch["x"][0] * sum(jnp.sum(x**2) / 2 for x in params.values()), {}

    optimizer = make_optimizer(dataclasses.replace(CONFIG, clip_norm=20.0, learning_rate=1e-9), steps=10)
    train = state.create(params, optimizer, sharding.make_mesh(), seed=3)
    step, clipped = make_train_step(loss, optimizer, train, ema_decay=0.9), []
    for scale in (1.0, 2.0, np.nan):
        data = {"index": np.arange(2, dtype=np.int32), "x": np.float32([scale, scale])}
        train, metrics = step(train, np.float32(1.0), data)
        clipped.append(metrics["clipped"])
        if np.isfinite(scale):
            found = [float(metrics[name]) / scale for name in ("grad_norm", "grad_norm/one", "grad_norm/two")]
            np.testing.assert_allclose(found, [13, 5, 12], rtol=1e-5)
    assert [(float(each.total), float(each.weight)) for each in clipped] == [(0, 1), (1, 1), (0, 0)]


def test_loss_function_may_not_take_the_steps_names():
    step, train = setup(lambda *args: (noisy_loss(*args)[0], {"grad_norm": jnp.zeros(())}))
    with pytest.raises(ValueError, match="grad_norm"):
        step(train, FROZEN, batch())


def test_learning_rate_warms_up_and_falls_to_its_end():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, schedule="cosine", final_fraction=0.1)
    rates = [float(learning_rate(config, 15)(step)) for step in (0, 3, 4, 9, 14, 99)]
    np.testing.assert_allclose(rates, [0.5, 2.0, 2.0, 2.0 * 0.55, 0.2, 0.2], rtol=1e-6)


def test_weight_decay_is_for_kernels_only():
    tree = {"blocks/to_q/kernel": 0, "blocks/to_q/bias": 0, "norm/scale": 0, "latents": 0, "words/embedding": 0}
    assert [path for path, decay in decayed(tree).items() if decay] == ["blocks/to_q/kernel"]


def test_bad_optimizer_field_is_refused_by_name():
    with pytest.raises(ValueError, match=r"optimizer\.schedule = 'linear' must be 'constant' or 'cosine'"):
        OptimizerConfig(schedule="linear")


MESH_RUN = """
import jax, numpy as np, sys
sys.path.insert(0, "tests/training")
import test_step as t
from cinema_jax.devices import sharding
from cinema_jax.training import state
from cinema_jax.training.step import make_train_step
def run(mesh, **options):
    optimizer = t.make_optimizer(t.CONFIG, steps=10)
    train = state.create(t.PARAMS, optimizer, mesh, seed=3)
    step = make_train_step(t.noisy_loss, optimizer, train, ema_decay=0.9, **options)
    placed = lambda tree: jax.tree.map(lambda x: jax.device_put(x, sharding.batch_sharding(mesh)), tree)
    specs = [x.sharding.spec for x in jax.tree.leaves(train)]
    for i in range(3):
        train, metrics = step(train, t.FROZEN, placed(t.batch(8 * i)))
    assert step._cache_size() == 1, step._cache_size()
    assert [x.sharding.spec for x in jax.tree.leaves(train)] == specs
    return jax.tree.map(np.asarray, (train.params, train.opt_state, metrics)), train
one, _ = run(sharding.make_mesh(data=1, devices=jax.devices()[:1]))
for options in ({}, {"microbatches": 2}):
    many, train = run(sharding.make_mesh(data=2, fsdp=2, tensor=1, context=2), **options)
    assert train.opt_state[1].mu["net/kernel"].sharding.spec[0] == ("fsdp", "context")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
"""


def test_a_mesh_trains_like_one_device_and_compiles_once():
    done = subprocess.run(
        [sys.executable, "-c", MESH_RUN],
        env=process_environment(devices=8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
