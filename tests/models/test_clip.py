"""The CLIP vision tower against transformers with the same random weights."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPVisionConfig as TheirConfig
from transformers import CLIPVisionModel

from cinema_jax.experiment import parts
from cinema_jax.models.clip.config import CLIPVisionConfig
from cinema_jax.models.clip.model import MEAN, STD, CLIPVision, squashed
from cinema_jax.models.clip.weights import TABLE, config_from_hf, config_to_hf
from cinema_jax.weights.rules import flatten, import_weights, load_into
from cinema_jax.weights.tensors import open_tensors

SMALL = CLIPVisionConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, image_size=28, patch_size=7
)
CONFIGS = {
    "even": SMALL,
    # 31 pixels are 6 patches and one pixel that belongs to none.
    "odd": dataclasses.replace(
        SMALL, image_size=31, patch_size=5, num_attention_heads=2, hidden_act="quick_gelu", layer_norm_eps=1e-3
    ),
}


def networks(config):
    """Transformers' network with random weights, norms included, and ours with the same."""
    torch.manual_seed(0)
    theirs = CLIPVisionModel(TheirConfig(**config_to_hf(config))).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2)
    model = nnx.eval_shape(lambda: CLIPVision(config, rngs=nnx.Rngs(0)))
    tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
    load_into(model, import_weights(tensors, TABLE, flatten(model)))
    return theirs, model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_states_are_those_of_transformers(config):
    theirs, model = networks(config)
    pixels = np.random.default_rng(0).normal(size=(2, config.image_size, config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True).hidden_states
    graph, state = nnx.split(model)
    for layer in (-2, 0, config.num_hidden_layers):
        run = jax.jit(lambda state, x, layer=layer: nnx.merge(graph, state)(x, layer))
        actual = np.asarray(run(state, pixels))
        assert actual.shape == (2, config.tokens, config.hidden_size)
        np.testing.assert_allclose(actual, expected[layer].numpy(), atol=1e-4 * float(expected[layer].abs().max()))


@pytest.mark.parametrize(("height", "width"), [(90, 160), (33, 21), (224, 224)])
def test_pictures_are_squashed_and_normalised_as_torchs_resize_of_fractions_does(height, width):
    """Torchvision's `Resize` is this function with antialiasing."""
    pictures = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)
    whole = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(whole, (28, 28), mode="bilinear", antialias=True)
    expected = (small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    actual = squashed(jnp.asarray(pictures), 28)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_a_folder_of_transformers_is_read_and_written_bit_for_bit(tmp_path):
    theirs, _ = networks(SMALL)
    theirs.save_pretrained(tmp_path / "one")
    assert parts.identify(tmp_path / "one") == "clip"
    config = parts.read_config("clip", tmp_path / "one")
    assert config == SMALL
    parts.write("clip", config, parts.read("clip", config, tmp_path / "one"), tmp_path / "two")
    one, other = (open_tensors(tmp_path / name) for name in ("one", "two"))
    assert {name.removeprefix("vision_model.") for name in one} == {x.removeprefix("vision_model.") for x in other}
    again, info = CLIPVisionModel.from_pretrained(tmp_path / "two", output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in theirs.state_dict().items())


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 5), ("patch_size", 29), ("layer_norm_eps", 0.0)])
def test_bad_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(SMALL, **{field: value})


def test_a_config_of_another_network_is_refused_by_name():
    with pytest.raises(ValueError, match="num_channels is 4"):
        config_from_hf(json.loads(json.dumps(config_to_hf(SMALL))) | {"num_channels": 4})
    with pytest.raises(ValueError, match="hidden_act"):
        config_from_hf(config_to_hf(SMALL) | {"hidden_act": "relu"})


@pytest.mark.parametrize(("shape", "layer", "message"), [(27, -2, "image_size is 28"), (28, 4, "layer is 4")])
def test_pictures_of_another_size_and_layers_that_are_not_there_are_named(shape, layer, message):
    model = nnx.eval_shape(lambda: CLIPVision(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model(jnp.zeros((1, shape, shape, 3)), layer))
