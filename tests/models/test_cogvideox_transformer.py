"""The CogVideoX transformer against diffusers with the same random weights, and what references may and may not do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from flax import nnx

from cinema_jax.models import layers
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.embeddings import index_vectors
from cinema_jax.models.cogvideox.transformer import CogVideoXTransformer, token_layout
from cinema_jax.models.cogvideox.weights import TABLE, config_from_hf, config_to_hf
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into

SINCOS = CogVideoXConfig(
    entity_time="video",
    entity_index="position",
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=64,
    in_channels=4,
    out_channels=4,
    text_embed_dim=12,
    time_embed_dim=24,
    max_text_seq_length=6,
    sample_height=12,
    sample_width=16,
    remat="none",
)
ROTARY = dataclasses.replace(SINCOS, use_rotary_positional_embeddings=True)
# Most of this file's time is XLA's, which optimises in vain for a few hundred tokens.
QUICK = {"xla_backend_optimization_level": 0}
CONFIGS = {
    "sincos": SINCOS,
    "rotary": ROTARY,
    "small heads": dataclasses.replace(ROTARY, num_attention_heads=3, attention_head_dim=32, out_channels=6),
    "other scales": dataclasses.replace(
        SINCOS,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=80,
        spatial_interpolation_scale=1.0,
        temporal_interpolation_scale=2.0,
        norm_eps=1e-3,
    ),
}


def abstract(config):
    return nnx.eval_shape(lambda: CogVideoXTransformer(config, rngs=nnx.Rngs(0)))


@functools.cache
def networks(config):
    """Diffusers' network with random weights, norms included, and ours with the same."""
    torch.manual_seed(0)
    theirs = CogVideoXTransformer3DModel.from_config(config_to_hf(config)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2)
    model = abstract(config)
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    load_into(model, import_weights(tensors, TABLE, flatten(model)))
    return theirs, model


@functools.cache
def network(config, **changes):
    """Our network, with options of `config` changed, as a function of parameters and inputs; and the parameters."""
    graph, _ = nnx.split(abstract(dataclasses.replace(config, **changes)))
    state = jax.tree.map(jnp.asarray, nnx.state(networks(config)[1]))
    return lambda state, *inputs: nnx.merge(graph, state)(*inputs), state


@functools.cache
def compiled(config, **changes):
    return jax.jit(network(config, **changes)[0], compiler_options=QUICK)


def run(config, *inputs, **changes):
    return compiled(config, **changes)(network(config, **changes)[1], *inputs)


def run_theirs(config, video, text, time):
    theirs, _ = networks(config)
    _, frames, height, width, _ = video.shape
    rotary = None
    if config.use_rotary_positional_embeddings:
        p = config.patch_size
        grid = height // p, width // p
        crop = get_resize_crop_region_for_grid(grid, config.sample_width // p, config.sample_height // p)
        rotary = get_3d_rotary_pos_embed(config.attention_head_dim, crop, grid, frames)
    with torch.no_grad():
        video, text, timestep = (
            torch.tensor(video).permute(0, 1, 4, 2, 3),
            torch.tensor(text),
            torch.tensor(1000 * time),
        )
        return theirs(video, text, timestep, image_rotary_emb=rotary).sample.permute(0, 1, 3, 4, 2).numpy()


def inputs(config, frames=2, height=4, width=6, batch=2, references=0, reference_size=None):
    rng = np.random.default_rng(frames * 100 + height)
    reference_size = reference_size or (height, width)
    return (
        rng.normal(size=(batch, frames, height, width, config.in_channels)).astype(np.float32),
        rng.normal(size=(batch, config.max_text_seq_length, config.text_embed_dim)).astype(np.float32),
        rng.normal(size=(batch, references, *reference_size, config.in_channels)).astype(np.float32),
        rng.uniform(size=batch).astype(np.float32),
    )


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("sincos", (3, 8, 6)),
        ("sincos", (1, 12, 16)),
        ("rotary", (1, 12, 16)),
        ("rotary", (3, 8, 6)),
        ("rotary", (4, 4, 10)),
        ("small heads", (2, 10, 6)),
        ("other scales", (4, 4, 10)),
    ],
)
def test_without_references_it_is_diffusers_network(name, size):
    config = CONFIGS[name]
    video, text, _, time = inputs(config, *size)
    assert relative_error(run(config, video, text, None, None, time), run_theirs(config, video, text, time)) < 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_exported_weights_load_in_diffusers(config):
    theirs, model = networks(config)
    tensors = export_weights({path: np.asarray(x) for path, x in flatten(model).items()}, TABLE)
    anew = CogVideoXTransformer3DModel.from_config(config_to_hf(config))
    anew.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in anew.state_dict().items())
    # Of what diffusers' network does not have the defaults are left.
    defaults = {"remat": "full", "entity_time": "zero", "entity_index": "vector"}
    assert config_from_hf(config_to_hf(config)) == dataclasses.replace(config, **defaults)


@pytest.mark.parametrize("config", [SINCOS, ROTARY], ids=["sincos", "rotary"])
def test_a_reference_reads_as_the_next_frame_of_diffusers_video(config):
    """References of the video's size, at the video's time, are what further frames would be for diffusers."""
    video, text, references, time = inputs(config, references=3)
    expected = run_theirs(config, np.concatenate([video, references], axis=1), text, time)[:, : video.shape[1]]
    actual = run(config, video, text, references, jnp.array([3, 3]), time)
    assert relative_error(actual, expected) < 1e-4


@pytest.mark.parametrize(
    ("config", "changes"),
    [(SINCOS, {}), (ROTARY, {"entity_time": "zero", "entity_index": "vector"})],
    ids=["sincos", "rotary"],
)
def test_samples_with_different_numbers_of_references_get_what_they_get_alone(config, changes):
    video, text, references, time = inputs(config, batch=3, references=3, reference_size=(2, 4))
    counts = [0, 1, 3]
    together = run(config, video, text, references, jnp.array(counts), time, **changes)
    for i, count in enumerate(counts):
        own = [x[i : i + 1] for x in (video, text, references[:, :count], jnp.array(counts), time)]
        alone = run(config, *own, **changes)
        assert relative_error(together[i : i + 1], alone) < 1e-5


def test_no_reference_slots_are_no_references():
    video, text, references, time = inputs(ROTARY)
    without = run(ROTARY, video, text, None, None, time)
    np.testing.assert_array_equal(run(ROTARY, video, text, references, jnp.array([0, 0]), time), without)


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_what_stands_in_absent_slots_changes_nothing(garbage):
    video, text, references, time = inputs(ROTARY, references=3)
    counts = jnp.array([1, 2])
    clean = run(ROTARY, video, text, references, counts, time, sequence_multiple=64)
    references[0, 1:] = references[1, 2:] = garbage
    np.testing.assert_array_equal(run(ROTARY, video, text, references, counts, time, sequence_multiple=64), clean)


@pytest.mark.parametrize("references", [0, 2])
def test_padding_the_sequence_changes_nothing(references):
    video, text, references, time = inputs(ROTARY, references=references)
    arguments = video, text, references, jnp.array([1, 2]) * bool(references.shape[1]), time
    padded = run(ROTARY, *arguments, sequence_multiple=128)
    assert relative_error(padded, run(ROTARY, *arguments)) < 1e-5


@pytest.mark.parametrize("config", [SINCOS, ROTARY], ids=["sincos", "rotary"])
def test_the_order_of_references_counts(config):
    """Each stands at its own time position, so the first subject is told from the second."""
    video, text, references, time = inputs(config, references=2)
    counts = jnp.array([2, 2])
    swapped = run(config, video, text, references[:, ::-1], counts, time)
    assert relative_error(swapped, run(config, video, text, references, counts, time)) > 1e-3


def test_entity_time_zero_modulates_only_references_and_by_time_zero():
    video, text, references, time = inputs(ROTARY, references=2)
    counts = jnp.array([2, 1])

    def both(references, time):
        return (run(ROTARY, video, text, references, counts, time, entity_time=t) for t in ("zero", "video"))

    at_zero, expected = both(references, 0 * time)
    assert relative_error(at_zero, expected) < 1e-5
    later, different = both(references, time)
    assert relative_error(later, different) > 1e-3
    without, expected = both(None, time)
    np.testing.assert_array_equal(without, expected)


def test_index_vectors_are_orthogonal_and_are_added_to_the_tokens_of_each_reference_alone():
    angles = np.pi * np.outer([1, 2, 3], np.arange(128) + 0.5) / 128
    vectors = np.asarray(index_vectors(3, 128))
    np.testing.assert_allclose(vectors, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, 64 * np.eye(3), atol=1e-4)
    video, text, references, time = inputs(ROTARY, references=2, reference_size=(2, 4))
    counts = jnp.array([2, 1])
    told = run(ROTARY, video, text, references, counts, time, entity_index="vector")
    graph, _ = nnx.split(abstract(ROTARY))

    def by_hand(state, *inputs):
        model = nnx.merge(graph, state)
        embed = model.patch_embed

        def embed_and_tell(latents):
            tokens = embed(latents)
            if latents.shape[2:4] != (2, 4):
                return tokens
            # Two tokens for each reference.
            return tokens + np.repeat(np.cos(angles[:2]), 2, axis=0).astype(np.float32)

        model.patch_embed = embed_and_tell
        return model(*inputs)

    expected = jax.jit(by_hand, compiler_options=QUICK)(network(ROTARY)[1], video, text, references, counts, time)
    assert relative_error(told, np.asarray(expected)) < 1e-5
    assert relative_error(told, np.asarray(run(ROTARY, video, text, references, counts, time))) > 1e-3
    without = run(ROTARY, video, text, None, None, time, entity_index="vector")
    np.testing.assert_array_equal(without, run(ROTARY, video, text, None, None, time))


def test_gradients_reach_present_references_and_no_absent_ones():
    video, text, references, time = inputs(ROTARY, references=2)
    counts = jnp.array([2, 1])
    function, state = network(ROTARY)

    def loss(references, *others):
        return jnp.square(function(state, jnp.asarray(video), jnp.asarray(text), references, *others)).sum()

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(references, counts, time)
    size = np.abs(gradient).max(axis=(2, 3, 4))
    assert (size > 0).tolist() == [[True, True], [True, False]]


def gradients(**changes):
    """Of the mean squared velocity, by the parameters."""
    video, text, references, time = inputs(ROTARY, references=1)
    function, state = network(ROTARY, **changes)

    def loss(*arguments):
        return jnp.square(function(*arguments)).mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    return jax.tree.leaves(gradient(state, video, text, references, jnp.array([1, 0]), time))


@pytest.mark.parametrize("remat", ["full", "attention", "dots"])
def test_neither_remat_nor_a_scan_changes_a_gradient(monkeypatch, remat):
    written_out = gradients(remat=remat)
    monkeypatch.setattr(layers, "_WRITTEN_OUT", 0)
    for a, b in zip(written_out, gradients(), strict=True):
        assert relative_error(a, np.asarray(b)) < 1e-4


def test_parameters_in_16_bits_compute_in_16_bits():
    video, text, references, time = inputs(ROTARY, references=1)
    counts = jnp.array([1, 1])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (network(ROTARY)[1], video, text, references))
    actual = compiled(ROTARY)(*half, counts, time)
    assert actual.dtype == jnp.bfloat16
    exact = run(ROTARY, video, text, references, counts, time)
    assert relative_error(actual.astype(jnp.float32), np.asarray(exact)) < 0.05


def test_an_untrained_network_says_velocity_0():
    video, text, _, time = inputs(ROTARY)
    create = jax.jit(lambda: nnx.state(CogVideoXTransformer(ROTARY, rngs=nnx.Rngs(0))), compiler_options=QUICK)
    assert not np.any(compiled(ROTARY)(create(), video, text, None, None, time))


def test_the_layout_counts_tokens():
    layout = token_layout(dataclasses.replace(ROTARY, sequence_multiple=16), (3, 8, 6, 4), 6, (2, 4, 4, 4))
    assert (layout.text, layout.video, layout.entity, layout.entities, layout.padding) == (6, 36, 4, 8, 14)
    assert layout.total == 64


@pytest.mark.parametrize(
    ("video", "text", "entities", "message"),
    [
        ((2, 4, 6, 5), 6, None, "video has 5 channels; in_channels is 4"),
        ((2, 4, 7, 4), 6, None, "video is 4 x 7 latents; patch_size 2 must divide both"),
        ((2, 4, 6, 4), 7, None, "text has 7 tokens; max_text_seq_length is 6"),
        ((2, 4, 6, 4), 6, (1, 3, 4, 4), "entities is 3 x 4 latents"),
    ],
)
def test_sizes_that_do_not_fit_are_named(video, text, entities, message):
    with pytest.raises(ValueError, match=message):
        token_layout(ROTARY, video, text, entities)


def test_references_without_their_number_are_refused():
    video, text, references, time = inputs(ROTARY, references=1)
    with pytest.raises(ValueError, match="entity_lengths is None; with 1 references"):
        run(ROTARY, video, text, references, None, time)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entity_time", "noise"),
        ("entity_index", "name"),
        ("num_layers", 0),
        ("attention_head_dim", 24),
        ("norm_eps", 0.0),
    ],
)
def test_bad_options_are_named(field, value):
    with pytest.raises(Exception, match=field):
        dataclasses.replace(ROTARY, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("patch_size_t", 2), ("ofs_embed_dim", 512), ("use_learned_positional_embeddings", True), ("windows", 3)],
)
def test_a_config_of_another_network_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        config_from_hf({**config_to_hf(SINCOS), field: value})
