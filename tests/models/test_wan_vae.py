"""The Wan VAE against diffusers with the same random weights: clips at once and in chunks, both ways."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan
from flax import nnx

from cinema_jax.models.tiling import Tiles, axes
from cinema_jax.models.wan import layers, vae
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.vae import WanVAE
from cinema_jax.models.wan.weights import TABLE, config_from_hf, config_to_hf
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into
from cinema_jax.weights.tensors import WeightError

SMALL = WanVAEConfig(
    base_dim=4,
    z_dim=3,
    num_res_blocks=1,
    latents_mean=(0.1, -0.2, 0.3),
    latents_std=(0.5, 1.5, 2.0),
)
CONFIGS = {
    "small": SMALL,
    "two blocks": dataclasses.replace(SMALL, num_res_blocks=2, dim_mult=(1, 2, 2, 3)),
    "other decoder": dataclasses.replace(SMALL, base_dim=2, decoder_base_dim=6),
    "attention": dataclasses.replace(SMALL, attn_scales=(0.5, 0.125), dim_mult=(2, 1, 2, 1)),
    "other strides": dataclasses.replace(SMALL, dim_mult=(1, 2, 2), temporal_downsample=(True, True)),
    "tiled": dataclasses.replace(SMALL, dim_mult=(2, 2), temporal_downsample=(True,)),
}
OTHERS = [name for name in CONFIGS if name not in ("small", "tiled")]
TILES = Tiles(height=16, width=20, overlap_height=0.25, overlap_width=0.2)
WHOLE = [("small", frames) for frames in (1, 5, 9, 17)] + [(name, 5) for name in OTHERS]
CHUNKED = [("small", frames) for frames in (1, 5, 17)] + [("two blocks", 9)]
# Most of this file's time is XLA's, which optimises in vain for so few pixels.
QUICK = {"xla_backend_optimization_level": 0}
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def attention_in_encoder(monkeypatch):
    """Diffusers' encoder passes its attention blocks a cache that they do not accept: let them."""
    forward = autoencoder_kl_wan.WanAttentionBlock.forward
    accepting = lambda self, x, feat_cache=None, feat_idx=None: forward(self, x)  # noqa: E731
    monkeypatch.setattr(autoencoder_kl_wan.WanAttentionBlock, "forward", accepting)


def abstract(config):
    return nnx.eval_shape(lambda: WanVAE(config, rngs=nnx.Rngs(0)))


@functools.cache
def networks(name):
    """Diffusers' VAE with random weights, norms and biases included; our graph; and our state with the same weights."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    theirs = AutoencoderKLWan.from_config(config_to_hf(config)).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if key.endswith("gamma"):
                parameter.normal_(1.0, 0.3)
            elif key.endswith("bias"):
                parameter.normal_(0.0, 0.1)
            elif key == "decoder.conv_out.weight":
                parameter *= 0.3  # keeps the pixels within [-1, 1]
    model = abstract(config)
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    load_into(model, import_weights(tensors, TABLE, flatten(model)))
    graph, state = nnx.split(model)
    return theirs, graph, jax.tree.map(jnp.asarray, state)


@functools.cache
def compiled(name, method, shape, *arguments):
    _, graph, state = networks(name)
    run = lambda state, x: getattr(nnx.merge(graph, state), method)(x, *arguments)  # noqa: E731
    return jax.jit(run, compiler_options=QUICK).lower(state, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()


def ours(name, method, x, *arguments):
    return compiled(name, method, x.shape, *arguments)(networks(name)[2], x)


def pixels(frames):
    return np.random.default_rng(frames).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)


@functools.cache
def reference(name, frames):
    """Mean, log variance and decoded mean by diffusers, channels last."""
    theirs = networks(name)[0]
    with torch.no_grad():
        posterior = theirs.encode(torch.tensor(pixels(frames)).permute(0, 4, 1, 2, 3)).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    assert decoded.abs().max() < 1, "clipped outputs compare equal whatever they were"
    return [x.permute(0, 2, 3, 4, 1).numpy() for x in (posterior.mean, posterior.logvar, decoded)]


def normalise(latents, config):
    return (latents - np.array(config.latents_mean, np.float32)) / np.array(config.latents_std, np.float32)


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() < TOLERANCE * np.abs(theirs).max()


@pytest.mark.parametrize(("name", "frames"), WHOLE)
def test_moments_of_a_whole_clip_match_diffusers(name, frames):
    mean, log_variance, _ = reference(name, frames)
    for mine, theirs in zip(ours(name, "encode_moments", pixels(frames)), (mean, log_variance), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(("name", "frames"), WHOLE)
def test_a_whole_clip_decodes_as_in_diffusers(name, frames):
    mean, _, decoded = reference(name, frames)
    assert_close(ours(name, "decode_raw", mean), decoded)


@pytest.mark.parametrize(("name", "frames"), CHUNKED)
def test_chunks_are_encoded_as_in_diffusers(name, frames):
    mean = reference(name, frames)[0]
    assert_close(ours(name, "encode", pixels(frames)), normalise(mean, CONFIGS[name]))


@pytest.mark.parametrize(("name", "frames"), CHUNKED)
def test_chunks_are_decoded_as_in_diffusers(name, frames):
    mean, _, decoded = reference(name, frames)
    assert_close(ours(name, "decode", normalise(mean, CONFIGS[name])), decoded)


# A grid of 3 x 3 whose last column is all blended; a clip in 2 x 1; one tile.
@pytest.mark.parametrize("size", [(1, 15, 18), (3, 9, 8), (1, 8, 10)])
def test_tiles_are_decoded_and_blended_as_in_diffusers(size, monkeypatch):
    # A third of the convolutions to compile; those tap by tap are compared elsewhere here.
    monkeypatch.setattr(layers, "causal_conv3d_by_taps", layers.causal_conv3d_native)
    theirs = networks("tiled")[0]
    latents = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    decoded = []
    for tiled in (False, True):
        if tiled:
            theirs.enable_tiling(TILES.height, TILES.width, 12, 16)
        with torch.no_grad():
            decoded.append(theirs.decode(torch.tensor(latents).permute(0, 4, 1, 2, 3)).sample.clone())
    theirs.use_tiling = False
    whole, blended = (x.permute(0, 2, 3, 4, 1).numpy() for x in decoded)
    assert np.abs(blended).max() < 1, "clipped outputs compare equal whatever they were"
    assert np.array_equal(blended, whole) == (size == (1, 8, 10))
    assert_close(ours("tiled", "decode_tiled", normalise(latents, CONFIGS["tiled"]), TILES), blended)


def test_frames_of_480p_are_decoded_in_tiles_of_one_size():
    (_, rows), (_, columns) = axes(None, vae.TILES, 60, 104, 8)
    assert (rows.size, list(rows.starts(60)), rows.blend) == (26, [0, 17, 34], 72)
    assert (columns.size, list(columns.starts(104)), columns.blend) == (32, [0, 24, 48, 72], 64)


@pytest.mark.parametrize(("method", "channels", "lengths"), [("encode", 3, (9, 17)), ("decode", 3, (3, 5))])
def test_memory_in_chunks_does_not_grow_with_the_clip(method, channels, lengths):
    size = (16, 24) if method == "encode" else (2, 3)
    memory = []
    for frames in lengths:
        program = compiled("small", method, (2, frames, *size, channels)).memory_analysis()
        memory.append((program.temp_size_in_bytes, program.argument_size_in_bytes + program.output_size_in_bytes))
    (short, short_clip), (long, long_clip) = memory
    # What grows is a copy of the latents.
    assert long - short < 0.02 * (long_clip - short_clip)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_config_go_back_to_diffusers(name):
    theirs, graph, state = networks(name)
    arrays = {path: np.asarray(x) for path, x in flatten(nnx.merge(graph, state)).items()}
    exported = export_weights(arrays, TABLE)
    other = AutoencoderKLWan.from_config(config_to_hf(CONFIGS[name]))
    other.load_state_dict({key: torch.tensor(x) for key, x in exported.items()}, strict=True)
    for key, x in theirs.state_dict().items():
        assert torch.equal(other.state_dict()[key], x), key
    assert config_from_hf(dict(other.config)) == CONFIGS[name]


def test_default_config_has_the_tensors_of_the_released_checkpoint():
    with torch.device("meta"):
        released = AutoencoderKLWan().state_dict()
    tensors = {key: np.broadcast_to(np.float32(0), x.shape) for key, x in released.items()}
    import_weights(tensors, TABLE, flatten(abstract(WanVAEConfig())))
    del tensors["decoder.norm_out.gamma"]
    with pytest.raises(WeightError, match="missing decoder/norm_out/scale"):
        import_weights(tensors, TABLE, flatten(abstract(WanVAEConfig())))


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_convolution_by_taps_and_its_gradients_equal_the_native_ones(past, frames):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, past + frames, 5, 6, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 3, 4))
    dy = jax.random.normal(keys[2], (2, frames, 5, 6, 4))
    by_taps, native = (
        (y, *pull(dy))
        for y, pull in (
            jax.vjp(lambda x, kernel, conv=conv: conv(x, kernel, past), x, kernel)
            for conv in (layers.causal_conv3d_by_taps, layers.causal_conv3d_native)
        )
    )
    for mine, theirs in zip(by_taps, native, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_an_image_needs_only_the_last_tap():
    x = jax.random.normal(jax.random.key(0), (2, 1, 5, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 4))
    native = layers.causal_conv3d_native(x, kernel, 0)
    np.testing.assert_allclose(layers.causal_conv3d(x, kernel), native, rtol=1e-4, atol=1e-4)


def test_upsampling_convolution_equals_repetition_and_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 5, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 2))
    theirs = layers.conv2d(x.repeat(2, axis=2).repeat(2, axis=3), kernel)
    np.testing.assert_allclose(layers.upsample_conv2d(x, kernel), theirs, rtol=1e-4, atol=1e-4)


def test_gradients_are_finite_and_reach_every_parameter(monkeypatch):
    # A third of the convolutions to compile; those tap by tap have the same gradients (above).
    monkeypatch.setattr(layers, "causal_conv3d_by_taps", layers.causal_conv3d_native)
    graph, state = nnx.split(WanVAE(SMALL, rngs=nnx.Rngs(0)))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradients(state, x):
        def loss(state):
            model = nnx.merge(graph, state)
            mean, log_variance = model.encode_moments(x)
            return jnp.mean((model.decode_raw(mean) - x - 1) ** 2) + jnp.mean(log_variance)

        return jax.grad(loss)(state)

    video = jnp.asarray(pixels(9))
    for x in (video, jnp.zeros_like(video)):
        for path, leaf in nnx.to_flat_state(gradients(state, x)):
            gradient = np.asarray(leaf[...])
            assert np.isfinite(gradient).all(), path
            # The attention's output projection begins at zero, and so do the gradients of what comes before it.
            if x is video and "attentions" not in path:
                assert np.abs(gradient).max() > 0, path


def test_computes_in_the_dtype_of_its_parameters():
    _, graph, state = networks("small")
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    for method in ("encode", "decode", "encode_moments", "decode_raw"):
        shape = (1, 5, 16, 16, 3)
        y = jax.eval_shape(
            lambda state, method=method, shape=shape: getattr(nnx.merge(graph, state), method)(
                jnp.zeros(shape, jnp.bfloat16)
            ),
            state,
        )
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(y)), method


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((4, 16, 16), "frames=4 must be 4k [+] 1; the nearest is 5"),
        ((0, 16, 16), "frames=0 must be 4k [+] 1; the nearest is 1"),
        ((5, 20, 16), "height=20 must be a multiple of 8; the nearest is 16"),
        ((5, 16, 3), "width=3 must be a multiple of 8; the nearest is 8"),
    ],
)
def test_sizes_that_cannot_be_coded_are_refused(size, message):
    _, graph, state = networks("small")
    model = nnx.merge(graph, state)
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)
    with pytest.raises(ValueError, match=message):
        model.encode(jnp.zeros((1, *size, 3)))


def test_shape_of_latents():
    model = abstract(WanVAEConfig())
    assert (model.config.temporal_compression, model.config.spatial_compression) == (4, 8)
    assert model.latent_shape(45, 480, 720) == (12, 60, 90, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"z_dim": 4}, "latents_mean has 16 entries, z_dim=4"),
        ({"temporal_downsample": (True, True)}, "temporal_downsample=.* must have 3 entries"),
    ],
)
def test_inconsistent_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WanVAEConfig(**fields)


@pytest.mark.parametrize("field", [{"is_residual": True}, {"patch_size": 2}, {"tail": 1}])
def test_other_published_vaes_are_refused_by_name(field):
    (name,) = field
    with pytest.raises(ValueError, match=name):
        config_from_hf(config_to_hf(SMALL) | field)
