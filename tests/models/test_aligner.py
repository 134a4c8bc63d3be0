"""AlignerNet against an independent PyTorch module, and its loss against a closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.aligner.model import AlignerNet, alignment_loss
from cinema_jax.models.aligner.weights import table
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into

TINY = AlignerConfig(input_dim=20, output_dim=14, num_layers=3, width=24, num_heads=4, num_latents=7)


class TorchLayer(torch.nn.Module):
    """The formulas of the published resampler, on torch's own attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.latents_norm, self.states_norm = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mlp_norm = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, z, x, padding):
        query = self.latents_norm(z)
        source = torch.cat([query, self.states_norm(x)], dim=1)
        padding = torch.nn.functional.pad(padding, (z.shape[1], 0), value=False)
        z = z + self.attention(query, source, source, key_padding_mask=padding, need_weights=False)[0]
        return z + self.down(torch.relu(self.up(self.mlp_norm(z))) ** 2)


class TorchAligner(torch.nn.Module):
    def __init__(self, c: AlignerConfig):
        super().__init__()
        self.latents = torch.nn.Parameter(torch.randn(c.num_latents, c.width))
        self.input_projection = torch.nn.Linear(c.input_dim, c.width)
        self.layers = torch.nn.ModuleList([TorchLayer(c.width, c.num_heads) for _ in range(c.num_layers)])
        self.output_projection = torch.nn.Linear(c.width, c.output_dim)
        self.output_norm = torch.nn.LayerNorm(c.output_dim)
        self.gate = torch.nn.Linear(c.width, 1) if c.gated else None
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, mean=0.1, std=0.3)

    def forward(self, states, padding):
        x, z = self.input_projection(states), self.latents.expand(len(states), -1, -1)
        for layer in self.layers:
            z = layer(z, x, padding)
        y = self.output_norm(self.output_projection(z))
        return y if self.gate is None else torch.sigmoid(self.gate(z)) * y


def tensors_of(model: TorchAligner) -> dict[str, np.ndarray]:
    """Under the names of our files; torch keeps the three input projections of its attention in one array."""
    tensors = {}
    for name, x in model.state_dict().items():
        if ".attention.in_proj_" in name:
            layer, kind = name.split(".attention.in_proj_")
            tensors |= {f"{layer}.{n}.{kind}": part.numpy() for n, part in zip("qkv", x.chunk(3), strict=True)}
        else:
            tensors[name.replace("attention.out_proj", "o")] = x.numpy()
    return tensors


def features(aligner: AlignerNet, states, lengths=None) -> jax.Array:
    graph, state = nnx.split(aligner)
    return jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))(state, states, lengths)


@pytest.fixture(scope="module")
def aligner() -> AlignerNet:
    return AlignerNet(TINY, rngs=nnx.Rngs(0))


def random_states(batch: int, length: int, config: AlignerConfig = TINY) -> np.ndarray:
    states = np.random.default_rng(0).normal(size=(batch, length, config.input_dim)).astype(np.float32)
    states[..., 3] *= 100  # MLLM states have a few huge channels
    return states


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(TINY, num_layers=1, num_heads=1, num_latents=1, output_dim=30),
        dataclasses.replace(TINY, gated=True),
    ],
    ids=["tiny", "minimal", "gated"],
)
def test_features_match_an_independent_torch_module(config):
    torch.manual_seed(0)
    model = TorchAligner(config)
    aligner = nnx.eval_shape(lambda: AlignerNet(config, rngs=nnx.Rngs(0)))
    arrays = import_weights(tensors_of(model), table(config), flatten(aligner))
    load_into(aligner, arrays)
    assert export_weights(arrays, table(config)).keys() == tensors_of(model).keys()
    states, lengths = random_states(3, 11, config), np.array([11, 4, 0])
    for given in lengths, None:
        padding = np.arange(11) >= (lengths[:, None] if given is not None else 11)
        with torch.no_grad():
            expected = model(torch.tensor(states), torch.tensor(np.broadcast_to(padding, (3, 11)).copy())).numpy()
        got = np.asarray(features(aligner, states, given))
        assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4


def test_padding_has_no_influence_whatever_it_holds_and_however_long_it_is(aligner):
    states, lengths = random_states(2, 9), np.array([5, 3])
    other = np.where(np.arange(9)[:, None] < lengths[:, None, None], states, 1e3 * states[:, ::-1])
    expected = features(aligner, states, lengths)
    np.testing.assert_array_equal(features(aligner, other, lengths), expected)
    np.testing.assert_allclose(features(aligner, states[:, :6], lengths), expected, atol=1e-5)


def test_every_real_state_has_influence(aligner):
    states = jnp.asarray(random_states(1, 6))
    gradient = jax.grad(lambda x: features(aligner, x, np.array([4]))[0, 0, 0])(states)
    np.testing.assert_array_equal(np.any(gradient[0] != 0, axis=-1), [True, True, True, True, False, False])


def test_fresh_aligner_has_the_stated_spread(aligner):
    assert aligner.latents[...].std() == pytest.approx(24**-0.5, rel=0.15)
    down = aligner.layers.down.kernel[...]
    assert down.std() == pytest.approx((2 * 3 * 4 * 24) ** -0.5, rel=0.05)
    assert not np.allclose(down[0], down[1]), "all layers start alike"


@pytest.mark.parametrize(("field", "value"), [("width", 25), ("num_layers", 0), ("num_latents", -1)])
def test_bad_size_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        dataclasses.replace(TINY, **{field: value})


def test_loss_matches_torch():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    lengths = np.array([5, 2, 1])
    loss, metrics = alignment_loss(
        jnp.asarray(predicted), jnp.asarray(target), jnp.asarray(lengths), mse_weight=0.5, cosine_weight=2.0
    )
    p, t = torch.tensor(predicted), torch.tensor(target)
    mse = torch.nn.functional.mse_loss(p, t).item()
    cosine = torch.nn.functional.cosine_similarity(p, t, dim=-1).numpy()
    real = np.arange(5) < lengths[:, None]
    assert float(loss) == pytest.approx(0.5 * mse + 2.0 * (1 - cosine.mean()), rel=1e-5)
    expected = {"mse": mse, "cosine": cosine.mean(), "cosine_real": cosine[real].mean()}
    expected["cosine_padding"] = cosine[~real].mean()
    assert {name: float(x) for name, x in metrics.items()} == pytest.approx(expected, rel=1e-4)


def test_balanced_loss_gives_a_caption_and_its_padding_half_each_and_either_alone_all():
    rng = np.random.default_rng(0)
    predicted, target = rng.normal(size=(2, 3, 5, 8))
    lengths = np.array([1, 4, 5])
    cosine = (predicted * target).sum(-1) / np.linalg.norm(predicted, axis=-1) / np.linalg.norm(target, axis=-1)
    errors = 0.5 * np.square(predicted - target).mean(-1) + 2.0 * (1 - cosine)
    each = [(errors[0, :1].mean() + errors[0, 1:].mean()) / 2, (errors[1, :4].mean() + errors[1, 4:].mean()) / 2]
    arrays = [jnp.asarray(x, jnp.float32) for x in (predicted, target)]
    loss, metrics = alignment_loss(*arrays, jnp.asarray(lengths), mse_weight=0.5, cosine_weight=2.0, balanced=True)
    assert float(loss) == pytest.approx(np.mean([*each, errors[2].mean()]), rel=1e-5)
    plain = alignment_loss(*arrays, jnp.asarray(lengths), mse_weight=0.5, cosine_weight=2.0)[1]
    assert {name: float(x) for name, x in metrics.items()} == {name: float(x) for name, x in plain.items()}


def test_loss_of_equal_features_is_zero_and_its_missing_metric_is_nan():
    x = jnp.asarray(random_states(2, 4))
    loss, metrics = alignment_loss(x, x, jnp.array([4, 4]))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics["cosine_real"]) == pytest.approx(1)
    assert np.isnan(metrics["cosine_padding"])


def test_gradient_is_finite_even_for_zero_features_and_a_caption_without_padding():
    target = jnp.asarray(random_states(1, 4))
    loss = jax.jit(lambda x: alignment_loss(x, target, jnp.array([4]))[0])
    gradient = jax.grad(loss)(jnp.zeros_like(target))
    assert np.isfinite(gradient).all()


def losses_of_learning(aligner, target):
    """Of 200 steps towards fixed features of four texts."""
    graph, state = nnx.split(aligner)
    states, lengths = jnp.asarray(random_states(4, 6)), jnp.array([6, 4, 3, 1])

    @jax.jit
    def step(state, velocity):
        def loss(state):
            return alignment_loss(nnx.merge(graph, state)(states, lengths), target, lengths)[0]

        value, gradient = jax.value_and_grad(loss)(state)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        return jax.tree.map(lambda p, v: p - 0.01 * v, state, velocity), velocity, value

    velocity, losses = jax.tree.map(jnp.zeros_like, state), []
    for _ in range(200):
        state, velocity, value = step(state, velocity)
        losses.append(float(value))
    return losses


def teacher():
    """As T5 v1.1: every position of its own direction, channels of very different size."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=14))
    return jnp.asarray(rng.normal(size=(4, 7, 14)) * scale, jnp.float32)


def test_aligner_learns_the_features_of_a_fixed_teacher(aligner):
    losses = losses_of_learning(aligner, teacher())
    assert losses[-1] < 0.2 * losses[0]


def test_a_gated_aligner_learns_zeros_behind_texts_that_a_norm_cannot_say(aligner):
    """As UMT5: behind each text, which has its own length, there is nothing."""
    texts = jnp.arange(7) < jnp.array([6, 4, 3, 1])[:, None]
    target = jnp.where(texts[..., None], teacher(), 0)
    gated = AlignerNet(dataclasses.replace(TINY, gated=True), rngs=nnx.Rngs(0))
    plain, better = (losses_of_learning(one, target)[-1] for one in (aligner, gated))
    print(f"loss after 200 steps: {plain:.4f} without gates, {better:.4f} with")
    assert better < 0.5 * plain


def test_a_target_of_zeros_has_no_direction():
    predicted = jnp.asarray(random_states(1, 2))
    target = predicted.at[:, 1].set(0)
    loss, _ = alignment_loss(predicted, target, jnp.array([1]), mse_weight=0.0)
    assert float(loss) == pytest.approx(0, abs=1e-6)
