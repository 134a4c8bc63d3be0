"""The CogVideoX VAE against diffusers with the same random weights, cut into the same chunks."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from flax import nnx

from cinema_jax.errors import InputError
from cinema_jax.models.cogvideox.vae import CogVideoXVAE
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.cogvideox.vae_weights import TABLE, config_from_hf, config_to_hf
from cinema_jax.models.tiling import Tiles, even_axes, tile_axes
from cinema_jax.models.wan import layers
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into

# Compilation grows with the stages: as few as have time halved twice, and all four where only one length is coded.
SMALL = CogVideoXVAEConfig(
    block_out_channels=(4, 8, 12), layers_per_block=1, latent_channels=3, norm_num_groups=2, scaling_factor=0.7
)
SHORT = dataclasses.replace(SMALL, block_out_channels=(4, 8), temporal_compression_ratio=2)
TILED = dataclasses.replace(SMALL, block_out_channels=(8, 4), temporal_compression_ratio=1)
TILED = dataclasses.replace(TILED, sample_height=40, sample_width=48)
CONFIGS = {
    "small": SMALL,
    "two blocks": dataclasses.replace(SHORT, layers_per_block=2),
    "time halved once": dataclasses.replace(SMALL, temporal_compression_ratio=2, block_out_channels=(6, 6, 6)),
    "other norm": dataclasses.replace(SMALL, norm_num_groups=4, norm_eps=1e-3, block_out_channels=(8, 8, 8, 8)),
    "short": SHORT,
    "tiled": TILED,
}
TILES = Tiles(height=16, width=20, overlap_height=0.25, overlap_width=0.2)
CLIPS = [("small", frames) for frames in (1, 9, 13, 17, 49)]
CLIPS += [(name, 9) for name in ("two blocks", "time halved once", "other norm")]
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@functools.cache
def abstract(config):
    return nnx.eval_shape(lambda: CogVideoXVAE(config, rngs=nnx.Rngs(0)))


@functools.cache
def networks(name):
    """Diffusers' VAE with random weights, norms and biases included; our graph and our state with the same."""
    torch.manual_seed(0)
    theirs = AutoencoderKLCogVideoX.from_config(config_to_hf(CONFIGS[name])).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            is_scale = key.endswith("weight") and parameter.ndim == 1
            parameter.normal_(float(is_scale), 0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
        theirs.decoder.conv_out.conv.weight *= 0.3  # keeps the pixels within [-1, 1]
    model = nnx.clone(abstract(CONFIGS[name]))
    tensors = {key: x.numpy() for key, x in theirs.state_dict().items()}
    load_into(model, import_weights(tensors, TABLE, flatten(model)))
    graph, state = nnx.split(model)
    return theirs, graph, jax.tree.map(jnp.asarray, state)


@functools.cache
def compiled(name, method, *arguments):
    """A method of ours, compiled once for each shape."""
    graph = networks(name)[1]
    run = lambda state, x: getattr(nnx.merge(graph, state), method)(x, *arguments)  # noqa: E731
    return jax.jit(run, compiler_options=QUICK)


def ours(name, method, x, *arguments):
    return compiled(name, method, *arguments)(networks(name)[2], x)


def pixels(frames):
    return np.random.default_rng(frames).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)


def channels_first(x):
    return torch.tensor(np.asarray(x)).permute(0, 4, 1, 2, 3)


@functools.cache
def reference(name, frames):
    """Mean, log variance and decoded mean by diffusers, channels last."""
    theirs = networks(name)[0]
    with torch.no_grad():
        posterior = theirs.encode(channels_first(pixels(frames))).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    return [x.permute(0, 2, 3, 4, 1).numpy() for x in (posterior.mean, posterior.logvar, decoded)]


def assert_close(mine, theirs):
    assert mine.shape == theirs.shape
    assert np.abs(np.asarray(mine) - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(("name", "frames"), CLIPS)
def test_moments_match_diffusers(name, frames):
    mean, log_variance, _ = reference(name, frames)
    for mine, theirs in zip(ours(name, "encode_moments", pixels(frames)), (mean, log_variance), strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(("name", "frames"), CLIPS)
def test_decoded_clips_match_diffusers(name, frames):
    mean, _, decoded = reference(name, frames)
    assert_close(ours(name, "decode_raw", mean), decoded)


def psnr(x, y):
    """In dB, of values in [-1, 1]."""
    return 10 * np.log10(4 / np.mean((np.asarray(x) - np.asarray(y)) ** 2))


# Tiles of four shapes on a grid of 3 x 3; 2 x 1; one.
@pytest.mark.parametrize("size", [(28, 36), (24, 12), (16, 20)])
def test_tiles_are_coded_and_blended_as_in_diffusers(size):
    theirs, rng = networks("tiled")[0], np.random.default_rng(0)
    video = rng.uniform(-1, 1, (1, 9, *size, 3)).astype(np.float32)
    latents = rng.normal(size=(1, 3, size[0] // 2, size[1] // 2, 3)).astype(np.float32)
    results = []
    for tiled in (False, True):
        if tiled:
            theirs.enable_tiling(TILES.height, TILES.width, TILES.overlap_height, TILES.overlap_width)
        with torch.no_grad():
            mean = theirs.encode(channels_first(video)).latent_dist.mean
            # Their tiles overwrite each other: a copy.
            decoded = theirs.decode(channels_first(latents).clone()).sample.clone()
        results.append([x.permute(0, 2, 3, 4, 1).numpy() for x in (mean, decoded)])
    theirs.disable_tiling()
    whole, (mean, decoded) = results
    assert np.array_equal(mean, whole[0]) == (size == (16, 20))
    assert_close(ours("tiled", "encode_tiled", video, TILES), mean * TILED.scaling_factor)
    scaled = latents * np.float32(TILED.scaling_factor)
    mine = ours("tiled", "decode_tiled", scaled, TILES)
    assert_close(mine, decoded.clip(-1, 1))
    if size == (28, 36):
        lost = psnr(mine, ours("tiled", "decode", scaled))
        print(f"tiled against whole: {lost:.1f} dB")
        assert lost == pytest.approx(psnr(decoded.clip(-1, 1), whole[1].clip(-1, 1)), abs=0.01)


def test_tiles_of_the_released_vae_fit_together():
    encode, decode = tile_axes("height", 240, 1 / 6, 8)
    assert (encode.stride, encode.keep, decode.stride, decode.keep) == (200, 25, 25, 200)


def test_tiles_of_the_released_vae_are_of_one_size_unless_told_otherwise():
    encode, decode = even_axes(60, 30, 1 / 6, 8)
    assert (encode.size, encode.stride, encode.blend, encode.keep) == (192, 144, 6, 18)
    assert (decode.size, decode.stride, decode.blend, decode.keep) == (24, 18, 48, 144)
    assert list(decode.starts(60)) == [0, 18, 36]


@pytest.mark.parametrize("latents", range(1, 90))
@pytest.mark.parametrize("overlap", [0.01, 0.2, 0.5])
def test_even_tiles_cover_a_frame_and_overlap(latents, overlap):
    encode, decode = even_axes(latents, 10, overlap, 8)
    starts = decode.starts(latents)
    assert decode.size <= 10
    assert starts[-1] + decode.size == latents
    assert len(starts) == 1 or decode.blend >= 8 * max(1, int(10 * overlap))
    assert list(encode.starts(8 * latents)) == [8 * start for start in starts]


def test_even_tiles_are_nearly_the_whole():
    latents = np.random.default_rng(0).normal(size=(1, 3, 21, 27, 3)).astype(np.float32)
    smooth = np.asarray(jax.image.resize(latents[:, :, ::7, ::9], latents.shape, "linear"))
    mine, whole = (ours("tiled", name, smooth) for name in ("decode_tiled", "decode"))
    assert mine.shape == whole.shape
    lost = psnr(mine, whole)
    print(f"even tiles against whole: {lost:.1f} dB")
    assert 25 < lost < 60


@pytest.mark.parametrize(("size", "overlap"), [(36, 0.25), (32, 0.3), (8, 0.5)])
def test_tiles_that_do_not_fit_together_are_refused(size, overlap):
    with pytest.raises(InputError, match=f"tiles of width {size} with overlap {overlap} do not fit"):
        tile_axes("width", size, overlap, 8)


def test_chunks_matter():
    """The norms span a chunk, the first of 13 frames or of 9: what they share does not come out alike."""
    short, long = (ours("small", "encode_moments", pixels(17)[:, :frames])[0] for frames in (13, 17))
    assert np.abs(short[:, :3] - long[:, :3]).max() > 1e-3


def test_latents_are_scaled_and_pixels_clipped():
    mean, _, _ = reference("small", 9)
    latents = ours("small", "encode", pixels(9))
    assert_close(latents, mean * 0.7)
    np.testing.assert_allclose(
        ours("small", "decode", latents), np.clip(ours("small", "decode_raw", mean), -1, 1), atol=1e-4
    )
    assert np.abs(ours("small", "decode", 50 * latents)).max() == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_and_config_go_back_to_diffusers(name):
    theirs, graph, state = networks(name)
    arrays = {path: np.asarray(x) for path, x in flatten(nnx.merge(graph, state)).items()}
    config = json.loads(json.dumps(config_to_hf(CONFIGS[name])))
    assert config_from_hf(config) == CONFIGS[name]
    other = AutoencoderKLCogVideoX.from_config(config)
    other.load_state_dict({key: torch.tensor(x) for key, x in export_weights(arrays, TABLE).items()}, strict=True)
    for (key, a), b in zip(theirs.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_gradients_are_finite_and_reach_every_parameter(monkeypatch):
    # A third of the convolutions to compile; those tap by tap have the same gradients (test_wan_vae.py).
    monkeypatch.setattr(layers, "causal_conv3d_by_taps", layers.causal_conv3d_native)
    _, graph, state = networks("short")

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradients(state, x):
        def loss(state):
            vae = nnx.merge(graph, state)
            mean, log_variance = vae.encode_moments(x)
            return jnp.mean((vae.decode_raw(mean) - x) ** 2) + jnp.mean(log_variance)

        return jax.grad(loss)(state)

    for path, leaf in nnx.to_flat_state(gradients(state, jnp.asarray(pixels(9)))):
        gradient = np.asarray(leaf[...])
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((45, 16, 16), "frames=45 must be 8k [+] 1, .*; the nearest is 49"),
        ((0, 16, 16), "frames=0 .* the nearest is 1"),
        ((9, 20, 16), "height=20 must be a multiple of 8; the nearest is 16"),
        ((9, 16, 3), "width=3 must be a multiple of 8; the nearest is 8"),
    ],
)
def test_sizes_that_would_not_come_back_are_refused(size, message):
    with pytest.raises(InputError, match=message):
        abstract(CogVideoXVAEConfig()).latent_shape(*size)


def test_released_sizes():
    assert abstract(CogVideoXVAEConfig()).latent_shape(49, 480, 720) == (13, 60, 90, 16)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"use_quant_conv": True}, "use_quant_conv is True; only False"),
        ({"down_block_types": ["DownBlock"] * 4}, "down_block_types holds 'DownBlock'"),
        ({"tail": 1}, "tail is not known"),
        ({"block_out_channels": [3, 4, 4, 4]}, "block_out_channels has 3, no multiple"),
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio is 3; with 4 stages accepted are 1, 2, 4, 8"),
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'"),
    ],
)
def test_other_vaes_are_refused_by_name(field, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(config_to_hf(CogVideoXVAEConfig()) | field)
