"""A finetune run against the same steps taken by hand: which config, weights, data and noise reach which formula.

By hand means: formulas written out here, optimizer and clipping by optax, examples by `Examples` and networks by
`Cinema`, which are compared with their originals elsewhere. Everything that the trainer hands from one to the other is
this file's subject.
"""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_params, random_run, tiny_values

from cinema_jax.cinema import Cinema
from cinema_jax.config import parse
from cinema_jax.data.loader import Order
from cinema_jax.data.pipeline import Examples
from cinema_jax.data.worker import example_rng
from cinema_jax.experiment import parts
from cinema_jax.experiment.checkpoint import complete_steps, load_params
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training import loop
from cinema_jax.training.stages.base import Stage
from cinema_jax.training.state import stage_seed

SEED, STEPS, BATCH, KEEP, VIDEOS, HELD_OUT = 5, 5, 4, 3, 7, 6
RATE, CLIP, DECAY, AVERAGE, SLOWER = 0.02, 0.05, 0.1, 0.2, 0.5
# Two steps of warm-up, then half a cosine to a tenth.
RATES = RATE * np.array([0.5, 1, 1, 0.55, 0.1])
# Warm-up of the average: (1 + step) / (10 + step), as long as that is less.
AVERAGES = [1 / 10, 2 / 11, AVERAGE, AVERAGE, AVERAGE]
PARTS = ("vae", "mllm", "aligner", "dit")


def values(folder):
    """A run of which nothing is at its default, and every field is felt within five steps."""
    values = tiny_values()
    values.stages, values.init, values.seed = ("finetune",), str(folder), SEED
    values.data.train_videos, values.data.validation_videos = VIDEOS, HELD_OUT
    values.condition.text_dropout, values.condition.reference_dropout = 0.4, 0.2
    values.condition.aligner_init = "random"
    values.flow.shift, values.flow.subject_weight = 2.0, 4.0
    values.flow.time_mean, values.flow.time_std = 0.3, 0.7
    stage = values.finetune
    # A frozen piece of a part that is trained.
    stage.trainable = ("aligner/.*", "dit/(?!text_embed).*")
    stage.steps, stage.batch_size, stage.microbatches = STEPS, BATCH, 2
    stage.ema_decay, stage.keep, stage.eval_every = AVERAGE, KEEP, 4
    stage.optimizer.update(
        learning_rate=RATE,
        warmup_steps=2,
        schedule="cosine",
        final_fraction=0.1,
        beta1=0.8,
        beta2=0.9,
        # Not so small that a gradient of rounding errors moves anything.
        epsilon=1e-4,
        weight_decay=DECAY,
        clip_norm=CLIP,
        rates=(("aligner/.*", SLOWER),),
    )
    return values


@pytest.fixture(scope="module")
def reported():
    """The parameters that the closing report was given."""
    return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory, reported):
    """The finished run."""
    folder = tmp_path_factory.mktemp("runs")
    run = Run.open(parse(values(random_run(folder / "init"))), folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        # Its samples would cost as much as all steps, and are other tests' subject.
        patch.setattr(
            Stage, "closing_report", lambda stage, run, configs, params, metrics: reported.update(params) or {}
        )
        loop.train(run)
    return run


@pytest.fixture(scope="module")
def initial(run):
    """The weights that the run starts from: those of `init`, but for the aligner, which begins anew."""
    found = {path: x for name in PARTS for path, x in random_params(name, run.part_config(name)).items()}
    return found | parts.initialise("aligner", run.part_config("aligner"), SEED)


@pytest.fixture(scope="module")
def trained(initial):
    """The paths that are trained."""
    return [path for path in initial if path.startswith(("aligner/", "dit/")) and "text_embed" not in path]


@pytest.fixture(scope="module")
def loss_and_gradient(run, initial, trained):
    """The loss of a batch, by the trained parameters: (trained, batch, noise, times, weights)."""
    cinema = Cinema(run.config, {name: run.part_config(name) for name in PARTS})
    frozen = {path: jnp.asarray(x) for path, x in initial.items() if path not in trained}

    def loss(own, frozen, batch, noise, times, weights):
        params, t = {**frozen, **own}, times.reshape(-1, 1, 1, 1, 1)
        clean = batch["latents"]
        velocity = cinema.velocity(params, (1 - t) * clean + t * noise, times, cinema.conditions(params, batch))
        errors = jnp.square(velocity - (noise - clean)).mean(axis=-1)
        errors = (weights * errors).sum(axis=(1, 2, 3)) / weights.sum(axis=(1, 2, 3))
        return errors.mean(), errors

    compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return lambda own, *arguments: compiled(own, frozen, *arguments)


@pytest.fixture(scope="module")
def encode(run, initial):
    """Latents of the first videos of a split."""
    cinema = Cinema(run.config, {"vae": run.part_config("vae")})
    vae = {path: x for path, x in initial.items() if path.startswith("vae/")}
    compiled = jax.jit(lambda vae, video: cinema.part(vae, "vae").encode(video.astype(jnp.float32) / 127.5 - 1))
    # Of one number, to compile once.
    return lambda split, count: np.asarray(compiled(vae, np.stack([run.source(split).video(i) for i in range(8)])))[
        :count
    ]


def normal(key, use, shape):
    """The numbers of one sample for one use."""
    return jax.random.normal(jax.random.fold_in(key, zlib.crc32(use)), shape)


@pytest.fixture(scope="module")
def batches(run, encode):
    """What each step is given: (examples, noise, times, weights)."""
    seed = stage_seed(SEED, "finetune")
    examples = Examples(run.source("train"), run.preprocessor(), range(VIDEOS), encode("train", VIDEOS))
    order, found = Order(VIDEOS, seed, shuffle=True), []
    for step in range(STEPS):
        numbers = range(BATCH * step, BATCH * step + BATCH)
        batch = collate([examples.finetune(order[i], example_rng(seed, "finetune", i)) for i in numbers])
        keys = [jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), i) for i in numbers]
        times = jax.nn.sigmoid(0.3 + 0.7 * jnp.stack([normal(key, b"flow.time", ()) for key in keys]))
        noise = jnp.stack([normal(key, b"flow.noise", batch["latents"].shape[1:]) for key in keys])
        found.append((batch, noise, 2 * times / (1 + times), batch.pop("error_weights")))
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step came to, by hand."""

    loss: float
    gradient_norm: float
    params: dict
    average: dict


@pytest.fixture(scope="module")
def steps(batches, initial, trained, loss_and_gradient):
    """All of them."""
    adamw = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(
            lambda step: jnp.asarray(RATES)[step],
            b1=0.8,
            b2=0.9,
            eps=1e-4,
            weight_decay=DECAY,
            mask=lambda params: {path: path.endswith("kernel") for path in params},
        ),
    )
    params = average = {path: jnp.asarray(initial[path]) for path in trained}
    moments, found = adamw.init(params), []
    for batch, decay in zip(batches, AVERAGES, strict=True):
        (loss, _), gradient = loss_and_gradient(params, *batch)
        updates, moments = adamw.update(gradient, moments, params)
        updates = {path: x * (SLOWER if path.startswith("aligner/") else 1) for path, x in updates.items()}
        params = {path: x + updates[path] for path, x in params.items()}
        average = {path: decay * x + (1 - decay) * params[path] for path, x in average.items()}
        found.append(Step(float(loss), float(optax.global_norm(gradient)), params, average))
    return found


@pytest.fixture(scope="module")
def lines(run):
    """Its metrics."""
    return [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]


def saved(run, step, *, ema):
    stored = load_params(run.workdir / "checkpoints" / "finetune", ema=ema, step=step)
    return {path: np.asarray(x) for path, x in stored.items()}


def assert_same(found, expected, initial):
    """Far closer than one step's update is large."""
    assert found.keys() == expected.keys()
    assert max(np.abs(x - initial[path]).max() for path, x in found.items()) > RATE
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, atol=2e-3 * RATE, err_msg=path)


def test_the_last_checkpoints_are_kept(run):
    assert complete_steps(run.workdir / "checkpoints" / "finetune") == list(range(STEPS - KEEP + 1, STEPS + 1))


@pytest.mark.parametrize("step", range(STEPS - KEEP + 1, STEPS + 1))
def test_parameters_are_those_of_the_steps_by_hand(run, steps, initial, step):
    assert_same(saved(run, step, ema=False), steps[step - 1].params, initial)


@pytest.mark.parametrize("step", range(STEPS - KEEP + 1, STEPS + 1))
def test_the_average_is_that_of_the_steps_by_hand(run, steps, initial, step):
    assert_same(saved(run, step, ema=True), steps[step - 1].average, initial)


def test_losses_and_gradients_are_those_of_the_steps_by_hand(lines, steps):
    told = [line for line in lines if "loss" in line]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([line["loss"] for line in told], [step.loss for step in steps], rtol=1e-4)
    norms = [step.gradient_norm for step in steps]
    np.testing.assert_allclose([line["grad_norm"] for line in told], norms, rtol=1e-3)
    assert min(norms) > 2 * CLIP, "clipping is felt in every step"


def test_learning_rates_are_those_of_the_config(lines):
    np.testing.assert_allclose([line["learning_rate"] for line in lines if "loss" in line], RATES, rtol=1e-5)


def test_the_finished_parts_are_the_average_and_what_was_frozen(run, initial, trained):
    average = saved(run, STEPS, ema=True)
    assert average.keys() == set(trained)
    assert sorted(folder.name for folder in (run.workdir / "parts").iterdir()) == ["aligner", "dit"]
    for name in ("aligner", "dit"):
        for path, x in run.params(name).items():
            np.testing.assert_array_equal(x, average[path] if path in average else initial[path], err_msg=path)


def test_the_closing_report_is_of_the_average(run, initial, reported):
    average = saved(run, STEPS, ema=True)
    assert reported.keys() == initial.keys()
    for path, x in reported.items():
        np.testing.assert_array_equal(x, average[path] if path in average else initial[path], err_msg=path)


@pytest.fixture(scope="module")
def held_out(run, encode):
    """Its batches: the second one reaches back, so that both are of one size."""
    examples = Examples(
        run.source("validation"), run.preprocessor(), range(HELD_OUT), encode("validation", HELD_OUT), augment=False
    )
    rows = [(0, 1, 2, 3), (2, 3, 4, 5)]
    return [(r, collate([examples.finetune(i, np.random.default_rng([SEED, i])) for i in r])) for r in rows]


def test_evaluation_comes_before_the_first_step_as_often_as_asked_and_at_the_end(lines):
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, STEPS]


@pytest.mark.parametrize("step", [4, STEPS])
def test_the_held_out_loss_is_that_of_the_average_over_all_held_out_batches(
    run, lines, held_out, loss_and_gradient, step
):
    average = saved(run, step, ema=True)
    losses = np.zeros((len(held_out), 4))
    for i, (rows, batch) in enumerate(held_out):
        shape = batch["latents"].shape
        for j, time in enumerate((0.125, 0.375, 0.625, 0.875)):
            key = jax.random.fold_in(jax.random.key(zlib.crc32(b"flow.evaluation"), impl="threefry2x32"), j)
            noise = jnp.stack([normal(jax.random.fold_in(key, row), b"flow.noise", shape[1:]) for row in rows])
            times, weights = jnp.full(len(rows), time, jnp.float32), np.ones(shape[:-1], np.float32)
            losses[i, j] = loss_and_gradient(average, batch, noise, times, weights)[0][0]
    (told,) = [line for line in lines if "eval_loss" in line and line["step"] == step]
    np.testing.assert_allclose(told["eval_loss"], losses.mean(), rtol=1e-4)
    np.testing.assert_allclose([told[f"eval_loss_t{i}"] for i in range(4)], losses.mean(axis=0), rtol=1e-4)
    if step == STEPS:
        assert run.finished("finetune")["eval_loss"] == told["eval_loss"]


def test_wrong_conditions_are_shown_to_the_same_videos_at_the_same_times(run, lines, encode, loss_and_gradient):
    """The average's ratios after the last step, each from pictures and texts that are put together here."""
    average, preprocessor = saved(run, STEPS, ema=True), run.preprocessor()
    source, latents = run.source("validation"), encode("validation", HELD_OUT)
    own = [source.conditions(i, np.random.default_rng([SEED, i])) for i in range(HELD_OUT)]
    counts = [len(each.references) for each in own]
    told = {"right": [], "swapped_references": [], "no_references": [], "no_text": []}
    for row in range(BATCH):
        # The next clip of as many subjects, else the next one.
        later = [*range(row + 1, HELD_OUT), *range(row)]
        other = own[next((i for i in later if counts[i] == counts[row]), later[0])]
        told["right"].append(preprocessor.conditions(own[row].prompt, own[row].references))
        told["swapped_references"].append(preprocessor.conditions(own[row].prompt, other.references))
        told["no_references"].append(preprocessor.conditions(own[row].prompt, ()))
        told["no_text"].append(preprocessor.conditions("", own[row].references))
    times, losses = (0.125, 0.375, 0.625, 0.875, 0.95, 0.99), {}
    for kind, made in told.items():
        batch, losses[kind] = collate(made) | {"latents": latents[:BATCH]}, []
        for j, time in enumerate(times):
            key = jax.random.fold_in(jax.random.key(zlib.crc32(b"flow.evaluation"), impl="threefry2x32"), j)
            shape = latents.shape[1:]
            noise = jnp.stack([normal(jax.random.fold_in(key, row), b"flow.noise", shape) for row in range(BATCH)])
            at, weights = jnp.full(BATCH, time, jnp.float32), np.ones((BATCH, *shape[:-1]), np.float32)
            losses[kind].append(float(loss_and_gradient(average, batch, noise, at, weights)[0][0]))
    (found,) = [line for line in lines if "eval_loss" in line and line["step"] == STEPS]
    right = np.array(losses.pop("right"))
    for kind, wrong in losses.items():
        assert np.abs(np.array(wrong) / right - 1).max() > 1e-3, f"{kind} is felt"
        np.testing.assert_allclose([found[f"ratio/{kind}_t{j}"] for j in range(6)], wrong / right, rtol=1e-4)
        np.testing.assert_allclose(found[f"ratio/{kind}"], sum(wrong[2:5]) / right[2:5].sum(), rtol=1e-4)
        np.testing.assert_allclose(found[f"ratio/{kind}_loss"], np.mean(wrong[:4]), rtol=1e-4)


def test_the_gradient_is_told_of_each_part_and_how_often_it_is_clipped(lines):
    told = [line for line in lines if "loss" in line]
    for line in told:
        parts = [line["grad_norm/aligner"], line["grad_norm/dit"]]
        np.testing.assert_allclose(np.hypot(*parts), line["grad_norm"], rtol=1e-5)
        assert line["clipped"] == 1
