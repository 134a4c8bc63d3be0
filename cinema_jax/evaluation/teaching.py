"""Teaching the judge: who is where in a frame, by pictures of everybody in the batch."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from safetensors.numpy import load_file
from tqdm import tqdm

from cinema_jax.cinema import to_float
from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.evaluation import lessons
from cinema_jax.evaluation.judge.config import JudgeConfig
from cinema_jax.evaluation.judge.model import Judge
from cinema_jax.training.optimizer import Optimizer, make_optimizer
from cinema_jax.training.state import update_ema
from cinema_jax.weights import rules
from cinema_jax.weights.shards import write_tensors


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the teaching: its scenes (from shard `first` of drawn ones on), and whether with twins."""

    name: str
    first: int
    lessons: int
    twins: bool
    steps: int
    learning_rate: float


# First who is who at all, then what tells one from somebody very like it.
PARTS = (
    Part("subjects", 0, 16384, False, 1600, 1e-2),
    Part("twins", 64, 8192, True, 400, 6e-3),
)
BATCH, SAVE_EVERY, WORKERS, SEED = 32, 100, 2, 0
AVERAGE = 0.995

Params = dict[str, Array]
Batch = Mapping[str, Any]
# Parameters, their moving average, and moments, whose type in optax names others by strings.
State = tuple[Params, Params, Any]


def teach(folder: Path, config: JudgeConfig, parts: Sequence[Part] = PARTS) -> Params:
    """Train a judge in `folder`, going on where an earlier call was stopped; the averaged parameters."""
    judge = Judge(config, rngs=nnx.Rngs(SEED))
    params = rules.flatten(judge)
    for part in parts:
        params = _teach(folder, nnx.graphdef(judge), params, part)
    return params


def _teach(folder: Path, graph: nnx.GraphDef, params: Params, part: Part) -> Params:
    optimizer = make_optimizer(
        OptimizerConfig(
            name="muon",
            learning_rate=part.learning_rate,
            warmup_steps=50,
            schedule="cosine",
            final_fraction=0.02,
            beta1=0.95,
        ),
        part.steps,
    )
    file = folder / f"{part.name}.safetensors"
    state, first = _restore(file, (params, params, optimizer.transform.init(params)))
    if first == part.steps:
        return state[1]
    drawn = lessons.prepare(folder / "lessons", part.first, part.lessons, WORKERS, part.twins)
    step = jax.jit(functools.partial(_step, graph, optimizer))
    steps, seen = tqdm(range(first, part.steps), desc=part.name, unit="step"), {}
    for number, batch in zip(steps, lessons.batches(drawn, BATCH, first, part.steps), strict=True):
        key, before = jax.random.fold_in(jax.random.key(SEED), number), seen
        state, seen = step(state, batch, key, number)
        # The bar counts what the device has computed; one step is always on its way.
        jax.block_until_ready(before)
        if (number + 1) % 20 == 0:
            steps.set_postfix({name: f"{float(value):.3f}" for name, value in seen.items()})
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == part.steps:
            _save(file, state, number + 1)
    return state[1]


def _step(graph: nnx.GraphDef, optimizer: Optimizer, state: State, batch: Batch, key: Array, number: Any):
    params, average, moments = state

    def loss(params):
        return lesson_loss(rules.build(graph, params), batch, key)

    gradients, seen = jax.grad(loss, has_aux=True)(params)
    directions, moments = optimizer.transform.update(gradients, moments, params)
    rate = optimizer.learning_rate(number)
    params = jax.tree.map(lambda p, d: p - rate * d, params, directions)
    return (params, update_ema(average, params, number, AVERAGE), moments), seen


def lesson_loss(judge: Judge, batch: Batch, key: Array) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Where subjects are (focal, as CenterNet), who they are (InfoNCE both ways), and the background's kind.

    `batch` holds stacked `lessons.draw`; pictures of twins are further ones that no place shows.
    """
    keys = jax.random.split(key, 3)
    frames, heat, cover = mirrored(keys[0], batch["frame"], batch["heat"], batch["cover"])
    frames = disturbed(keys[1], frames)
    count, most = batch["references"].shape[:2]
    shown = ["references", "twins"] if "twins" in batch else ["references"]
    pictures = jnp.concatenate([batch[name].reshape(count * most, *batch[name].shape[2:]) for name in shown])
    seen = judge.frames(frames)
    names = judge.references(disturbed(keys[2], to_float(pictures)))

    where = _focal(seen.heat, heat.max(axis=1))
    present = jnp.tile((jnp.arange(most) < batch["count"][:, None]).reshape(-1), len(shown))
    logits = judge.scale() * jnp.einsum("bhwe,re->brhw", seen.embeddings, names)
    masked = jnp.where(present[None, :, None, None], logits, -1e9)
    # Each place that shows a subject, near its centre, votes for one of all pictures.
    votes = heat * (cover > 0.5) * heat.max(axis=(2, 3), keepdims=True)
    total = votes.sum()
    own = jnp.arange(count * most).reshape(count, most)
    chances = jax.nn.log_softmax(masked, axis=1)
    right = jnp.take_along_axis(chances, own[:, :, None, None], axis=1)
    who = -(votes * right).sum() / total
    best = jnp.argmax(masked, axis=1)
    accuracy = (votes * (best[:, None] == own[:, :, None, None])).sum() / total
    back = _which_frame(logits, seen.heat, votes, own)
    place = optax.softmax_cross_entropy_with_integer_labels(seen.background, batch["place"]).mean()
    loss = where + who + 0.5 * back + 0.2 * place
    return loss, {"where": where, "who": who, "accuracy": accuracy, "back": back, "place": place}


def _which_frame(
    logits: Float[Array, "B R h w"], heat: Float[Array, "B h w"], votes: Float[Array, "B K h w"], own: Int[Array, "B K"]
) -> Float[Array, ""]:
    """The other way: each picture finds its frame among all, by the best of their places."""
    scores = logits + jax.nn.log_sigmoid(heat)[:, None]
    scores = jax.nn.logsumexp(scores, axis=(2, 3))  # B R
    chances = jax.nn.log_softmax(scores, axis=0)
    shown = (votes.sum(axis=(2, 3)) > 0).astype(jnp.float32)
    right = chances[jnp.arange(len(own))[:, None], own]
    return -(right * shown).sum() / shown.sum()


def _focal(logits: Float[Array, "B h w"], target: Float[Array, "B h w"]) -> Float[Array, ""]:
    """Cross entropy that forgives places beside a centre (CenterNet, equation 1), per frame."""
    chance = jax.nn.sigmoid(logits)
    centre = target > 0.75
    hit = -1.0 * centre * (1 - chance) ** 2 * jax.nn.log_sigmoid(logits)
    miss = -1.0 * ~centre * (1 - target) ** 4 * chance**2 * jax.nn.log_sigmoid(-logits)
    return (hit + miss).sum(axis=(1, 2)).mean()


def mirrored(
    key: Array, frames: UInt8[Array, "B height width 3"], *maps: Float[Array, "B K h w"]
) -> tuple[Float[Array, "..."], ...]:
    """Half of the frames with their maps mirrored; frames in [-1, 1]."""
    flip = jax.random.bernoulli(key, 0.5, (len(frames),))[:, None, None, None]
    frames = to_float(frames)
    turned = [jnp.where(flip, x[..., ::-1], x).astype(jnp.float32) for x in maps]
    return jnp.where(flip, frames[:, :, ::-1], frames), *turned


def disturbed(key: Array, pictures: Float[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
    """Pictures with other light, softness and noise: a generator's videos are not as clean as drawn ones."""
    keys = iter(jax.random.split(key, 8))
    size = (len(pictures), 1, 1, 1)
    gain = 1 + 0.12 * jax.random.normal(next(keys), size) + 0.04 * jax.random.normal(next(keys), (*size[:3], 3))
    x = gain * pictures + 0.08 * jax.random.normal(next(keys), size)
    sigma = 0.3 + 1.4 * jax.random.uniform(next(keys), (len(pictures), 1)) ** 2
    taps = jnp.exp(-0.5 * (jnp.arange(-3, 4) / sigma) ** 2)
    taps = (taps / taps.sum(axis=1, keepdims=True))[:, :, None, None, None]
    for axis in (1, 2):
        width = [(0, 0)] * 4
        width[axis] = (3, 3)
        padded = jnp.pad(x, width, mode="edge")
        x = sum(taps[:, i] * jax.lax.slice_in_dim(padded, i, i + pictures.shape[axis], axis=axis) for i in range(7))
    noise = 0.15 * jax.random.uniform(next(keys), size) ** 2 * jax.random.normal(next(keys), x.shape)
    coarse = jax.random.normal(next(keys), (len(x), x.shape[1] // 4, x.shape[2] // 4, 3))
    blotches = 0.25 * jax.random.uniform(next(keys), size) ** 2 * jax.image.resize(coarse, x.shape, "linear")
    return jnp.clip(x + noise + blotches, -1, 1)


def _save(file: Path, state: State, step: int) -> None:
    leaves = {f"{i:04d}": np.asarray(x, np.float32) for i, x in enumerate(jax.tree.leaves(state))}
    write_tensors(file, leaves | {"step": np.asarray([step], np.float32)})


def _restore(file: Path, state: State) -> tuple[State, int]:
    if not file.exists():
        return state, 0
    saved = load_file(file)
    leaves, tree = jax.tree.flatten(state)
    leaves = [jnp.asarray(saved[f"{i:04d}"], x.dtype).reshape(x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, leaves), int(saved["step"][0])
