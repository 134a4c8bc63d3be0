"""The Wan transformer against diffusers with the same random weights, and what references may and may not do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from flax import nnx

from cinema_jax.models import layers
from cinema_jax.models.wan.transformer import WanTransformer
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.models.wan.transformer_weights import config_from_hf, config_to_hf, original_table, plain_names, table
from cinema_jax.weights.rules import export_weights, flatten, import_weights, load_into
from cinema_jax.weights.tensors import WeightError

T2V = WanConfig(
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    text_embed_dim=12,
    freq_dim=8,
    ffn_dim=24,
    max_text_seq_length=7,
    remat="none",
)
# Diffusers takes all but the last 512 tokens for those of a picture.
I2V = dataclasses.replace(T2V, in_channels=9, image_embed_dim=10, num_layers=1, max_text_seq_length=512)
CONFIGS = {
    "T2V": T2V,
    "I2V": I2V,
    # Channels that do not divide by 6 evenly, and more that go out than come in.
    "odd heads": dataclasses.replace(T2V, num_attention_heads=3, attention_head_dim=22, out_channels=6, norm_eps=1e-3),
}
# Most of this file's time is XLA's, which optimises in vain for a few hundred tokens.
QUICK = {"xla_backend_optimization_level": 0}


def abstract(config):
    return nnx.eval_shape(lambda: WanTransformer(config, rngs=nnx.Rngs(0)))


@functools.cache
def networks(config):
    """Diffusers' network with random weights, norms included, and ours with the same."""
    torch.manual_seed(0)
    theirs = WanTransformer3DModel.from_config(config_to_hf(config)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2)
    model = abstract(config)
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    load_into(model, import_weights(tensors, table(config), flatten(model)))
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


def run_theirs(config, video, text, time, images=None):
    with torch.no_grad():
        video, text, timestep = (
            torch.tensor(video).permute(0, 4, 1, 2, 3),
            torch.tensor(text),
            torch.tensor(1000 * time),
        )
        images = None if images is None else torch.tensor(images)
        out = networks(config)[0](video, timestep, text, encoder_hidden_states_image=images, return_dict=False)[0]
    return out.permute(0, 2, 3, 4, 1).numpy()


def inputs(config, frames=2, height=4, width=6, batch=2, references=0, reference_size=None):
    """The second text is shorter: zeros follow it."""
    rng = np.random.default_rng(frames * 100 + height)
    reference_size = reference_size or (height, width)
    text = rng.normal(size=(batch, config.max_text_seq_length, config.text_embed_dim)).astype(np.float32)
    text[1:, 3:] = 0
    return (
        rng.normal(size=(batch, frames, height, width, config.in_channels)).astype(np.float32),
        text,
        rng.normal(size=(batch, references, *reference_size, config.in_channels)).astype(np.float32),
        rng.uniform(size=batch).astype(np.float32),
    )


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "size"),
    [("T2V", (3, 8, 6)), ("T2V", (1, 2, 2)), ("T2V", (5, 4, 10)), ("odd heads", (3, 6, 14)), ("I2V", (3, 4, 6))],
)
def test_without_references_it_is_diffusers_network(name, size):
    config = CONFIGS[name]
    video, text, _, time = inputs(config, *size)
    told = ()
    if config.image_embed_dim:
        told = (np.random.default_rng(0).normal(size=(2, 5, config.image_embed_dim)).astype(np.float32),)
    expected = run_theirs(config, video, text, time, *told)
    assert relative_error(run(config, video, text, None, None, time, *told), expected) < 1e-4


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_exported_weights_load_in_diffusers(config):
    theirs, model = networks(config)
    tensors = export_weights({path: np.asarray(x) for path, x in flatten(model).items()}, table(config))
    anew = WanTransformer3DModel.from_config(config_to_hf(config))
    anew.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in anew.state_dict().items())
    back = config_from_hf(config_to_hf(config))
    assert dataclasses.replace(back, max_text_seq_length=config.max_text_seq_length, remat="none") == config


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("config", [T2V, I2V], ids=["T2V", "I2V"])
def test_original_names_are_written_as_diffusers_reads_them_and_read_back(config, prefix):
    theirs, model = networks(config)
    ours = {path: np.asarray(x) for path, x in flatten(model).items()}
    original = export_weights(ours, original_table(config))
    assert {"blocks.0.self_attn.q.weight", "head.modulation", "time_projection.1.bias"} <= original.keys()
    converted = convert_wan_transformer_to_diffusers({name: torch.tensor(x) for name, x in original.items()})
    assert all(torch.equal(x, converted[name]) for name, x in theirs.state_dict().items())
    assert converted.keys() == theirs.state_dict().keys()
    found = {f"{prefix}{name}": x for name, x in original.items()}
    found[f"{prefix}blocks.0.cross_attn.norm_added_q.weight"] = np.ones(3, np.float32)
    read = import_weights(plain_names(found), table(config), flatten(model))
    assert all(np.array_equal(np.asarray(read[path]), x) for path, x in ours.items())
    assert read.keys() == ours.keys()


def test_a_reference_reads_as_the_next_frame_of_diffusers_video():
    """Phantom's layout: one clip of video and references, of which the references' end is cut off afterwards."""
    video, text, references, time = inputs(T2V, references=3)
    expected = run_theirs(T2V, np.concatenate([video, references], axis=1), text, time)[:, : video.shape[1]]
    actual = run(T2V, video, text, references, jnp.array([3, 3]), time)
    assert relative_error(actual, expected) < 1e-4


def test_samples_with_different_numbers_of_references_get_what_they_get_alone():
    video, text, references, time = inputs(T2V, batch=3, references=3, reference_size=(2, 4))
    counts = [0, 1, 3]
    together = run(T2V, video, text, references, jnp.array(counts), time)
    for i, count in enumerate(counts):
        own = [x[i : i + 1] for x in (video, text, references[:, :count], jnp.array(counts), time)]
        assert relative_error(together[i : i + 1], run(T2V, *own)) < 1e-5


def test_no_reference_slots_are_no_references():
    video, text, references, time = inputs(T2V)
    without = run(T2V, video, text, None, None, time)
    np.testing.assert_array_equal(run(T2V, video, text, references, jnp.array([0, 0]), time), without)


@pytest.mark.parametrize("garbage", [1e6, np.nan])
def test_what_stands_in_absent_slots_changes_nothing(garbage):
    video, text, references, time = inputs(T2V, references=3)
    counts = jnp.array([1, 2])
    clean = run(T2V, video, text, references, counts, time, sequence_multiple=64)
    references[0, 1:] = references[1, 2:] = garbage
    np.testing.assert_array_equal(run(T2V, video, text, references, counts, time, sequence_multiple=64), clean)


def test_a_shorter_text_is_filled_up_with_zeros():
    video, text, _, time = inputs(T2V)
    text[:, 4:] = 0
    np.testing.assert_array_equal(
        run(T2V, video, text[:, :4], None, None, time), run(T2V, video, text, None, None, time)
    )


@pytest.mark.parametrize("references", [0, 2])
def test_padding_the_sequence_changes_nothing(references):
    video, text, references, time = inputs(T2V, references=references)
    arguments = video, text, references, jnp.array([1, 2]) * bool(references.shape[1]), time
    assert relative_error(run(T2V, *arguments, sequence_multiple=64), run(T2V, *arguments)) < 1e-5


def gradients(**changes):
    """Of the mean squared velocity, by the parameters."""
    video, text, references, time = inputs(T2V, references=1)
    function, state = network(T2V, **changes)

    def loss(*arguments):
        return jnp.square(function(*arguments)).mean()

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)
    return jax.tree.leaves(gradient(state, video, text, references, jnp.array([1, 0]), time))


def test_neither_remat_nor_a_scan_changes_a_gradient(monkeypatch):
    written_out = gradients(remat="attention")
    monkeypatch.setattr(layers, "_WRITTEN_OUT", 0)
    expected = gradients()
    assert all(np.any(x) for x in expected), "every parameter has a part in the loss"
    for a, b in zip(written_out, expected, strict=True):
        assert relative_error(a, np.asarray(b)) < 1e-4


def test_parameters_in_16_bits_compute_in_16_bits():
    video, text, references, time = inputs(T2V, references=1)
    counts = jnp.array([1, 1])
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (network(T2V)[1], video, text, references))
    actual = compiled(T2V)(*half, counts, time)
    assert actual.dtype == jnp.bfloat16
    exact = run(T2V, video, text, references, counts, time)
    assert relative_error(actual.astype(jnp.float32), np.asarray(exact)) < 0.05


def test_an_untrained_network_says_velocity_0():
    video, text, _, time = inputs(T2V)
    create = jax.jit(lambda: nnx.state(WanTransformer(T2V, rngs=nnx.Rngs(0))), compiler_options=QUICK)
    assert not np.any(compiled(T2V)(create(), video, text, None, None, time))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": (1, 2, 4, 6, 5), "entities": (1, 0, 4, 6, 5)}, "video has 5 channels; in_channels is 4"),
        ({"video": (1, 2, 4, 7, 4)}, "video is 4 x 7 latents; patch_size 2 must divide both"),
        ({"text": (1, 8, 12)}, "text has 8 tokens; max_text_seq_length is 7"),
        ({"entities": (1, 1, 3, 4, 4)}, "entities is 3 x 4 latents"),
        ({"entities": (1, 1, 4, 6, 4)}, "entity_lengths is None; with 1 references"),
        ({"images": (1, 5, 10)}, "images are given; image_embed_dim is 0"),
        ({"states": (1, 5, 10)}, "states are given; mllm_embed_dim is 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, message):
    shapes = {"video": (1, 2, 4, 6, 4), "text": (1, 7, 12), "entities": (1, 0, 4, 6, 4), "time": (1,)} | change
    given = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda given: networks(T2V)[1](**given, entity_lengths=None), given)


@pytest.mark.parametrize(
    ("field", "value"), [("num_layers", 0), ("attention_head_dim", 15), ("norm_eps", 0.0), ("image_embed_dim", -1)]
)
def test_bad_options_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(T2V, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pos_embed_seq_len", 514),
        ("patch_size", [2, 2, 2]),
        ("qk_norm", None),
        ("added_kv_proj_dim", 64),
        ("vace_layers", [0, 5]),
        ("_class_name", "WanVACETransformer3DModel"),
    ],
)
def test_a_config_of_another_network_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        config_from_hf({**config_to_hf(T2V), field: value})


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("vace_blocks.0.after_proj.weight", "VACE"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "LoRA"),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "LoRA"),
        ("blocks.0.self_attn.q.scale_weight", "in 8 bits with scales"),
    ],
)
def test_files_of_other_networks_are_refused_in_one_sentence(name, what):
    with pytest.raises(WeightError, match=what):
        plain_names({name: np.zeros(1)})
