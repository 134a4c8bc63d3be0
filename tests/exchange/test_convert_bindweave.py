"""BindWeave's weights in, sampled and out: against a small PyTorch reference written from its description."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from bindweave import FRAMES, HEIGHT, STEPS, WIDTH, bindweave
from PIL import Image
from released import PROMPT
from safetensors.torch import load_file

from cinema_jax import convert, generate
from cinema_jax.data.example import Reference
from cinema_jax.data.images import read_image
from cinema_jax.diffusion import flow
from cinema_jax.diffusion.guidance import FULL, REFERENCES_ONLY
from cinema_jax.errors import InputError
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.exchange.imports import import_checkpoint
from cinema_jax.experiment.pipelines import pipeline_config
from cinema_jax.experiment.presets import BINDWEAVE
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler

NEGATIVE, SEED = "the lazy dog", 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The reference, and its weights imported by the command. Room for the MLLM is as small as the pictures."""
    folder = tmp_path_factory.mktemp("made")
    theirs = bindweave(folder)
    words = [f"--source={source}" for source in theirs.sources]
    convert.main(convert._parser(["convert", "import", *words, f"--output={folder / 'checkpoint'}"]))
    file = folder / "checkpoint" / "config.json"
    values = json.loads(file.read_text())
    assert all(values[section] | changes == values[section] for section, changes in as_json(BINDWEAVE).items())
    values["condition"] |= {"mllm_patches": 4 * 4 * 130, "mllm_tokens": 640}
    file.write_text(json.dumps(values))
    return theirs, folder / "checkpoint"


def as_json(values):
    return json.loads(json.dumps(values))


@pytest.fixture(scope="module")
def sampler(made):
    return load_sampler(made[1])[1]


@pytest.fixture(scope="module")
def velocity(sampler):
    """Compiled once: absent references change no shape."""
    return jax.jit(sampler.cinema.velocity)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Smaller than the video and odd; wide; tall; and one larger than 1280 x 720."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, (width, height) in enumerate([(31, 19), (150, 61), (40, 97), (1303, 720)]):
        small = rng.integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(4)]


def request(pictures):
    read = [read_image(path) for path in pictures]
    references = tuple(Reference(picture.image, picture.mask, str(i)) for i, picture in enumerate(read))
    return Request(PROMPT, references, SEED, NEGATIVE)


def noise():
    keys = jnp.stack([jax.random.key(SEED, impl="threefry2x32")])
    return flow.sample_noise(keys, (3, 4, 6, 4))


def channels_second(x):
    return torch.tensor(np.asarray(x)).permute(0, 4, 1, 2, 3)


def assert_close(actual, expected, tolerance):
    expected = expected.permute(0, 2, 3, 4, 1).numpy()
    assert expected.std() > 0.1, "zeros would be equal whatever was told"
    assert np.abs(np.asarray(actual) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_velocity_is_that_of_the_reference_whatever_slots_are_absent(made, sampler, velocity, pictures, count):
    theirs, shown = made[0], pictures[:count]
    with torch.no_grad():
        text, seen, states = theirs.text(PROMPT, shown), theirs.pictures(shown), theirs.states(PROMPT, shown).numpy()
        expected = theirs.velocity(channels_second(noise()), torch.tensor(600), text, *seen)
    told = sampler.conditions([request(shown)], FULL, (HEIGHT, WIDTH, FRAMES))
    np.testing.assert_array_equal(told.state_lengths, [states.shape[1]])
    np.testing.assert_allclose(told.states[:, : states.shape[1]], states, atol=1e-4 * np.abs(states).max())
    np.testing.assert_allclose(told.images, seen[1].numpy(), atol=1e-4 * float(seen[1].abs().max()))
    assert_close(velocity(sampler.params, noise(), jnp.array([0.6]), told), expected, 1e-4)


def test_sampling_is_a_loop_of_diffusers_scheduler_with_the_references_in_both_branches(made, sampler, pictures):
    with torch.no_grad():
        expected = made[0].sample(channels_second(noise()), PROMPT, NEGATIVE, pictures[1:])
    settings = sampler.settings(steps=STEPS, frames=FRAMES, height=HEIGHT, width=WIDTH)
    assert (settings.shift, settings.guidance_reference, settings.guidance_text) == (3.0, 1.0, 5.0)
    assert sampler.guidance(settings)[0] == (REFERENCES_ONLY, FULL)
    assert_close(sampler.latents([request(pictures[1:])], settings), expected, 1e-3)


def command(folder, output, *more):
    arguments = [f"--checkpoint={folder}", f"--prompt={PROMPT}", f"--output={output}", f"--steps={STEPS}"]
    arguments += [f"--frames={FRAMES}", f"--height={HEIGHT}", f"--width={WIDTH}", *map(str, more)]
    with flagsaver.flagsaver(reference=[]):
        flags.FLAGS(["generate", *arguments])
        generate.main()


def test_an_export_has_the_same_names_bit_for_bit_and_generates(made, pictures, tmp_path):
    theirs, checkpoint = made
    export_checkpoint(Run.load(checkpoint), tmp_path / "export", max_shard_size="40KB")
    names = dict(zip(("transformer", "mllm"), theirs.sources[1:], strict=True))
    names["image_encoder"] = theirs.sources[0] / "image_encoder"
    for name, source in names.items():
        one, other = tensors(source), tensors(tmp_path / "export" / name)
        prefix = "vision_model." if name == "image_encoder" else ""
        assert {prefix + key.removeprefix(prefix) for key in one} == other.keys(), name
        assert all(torch.equal(x, other[prefix + key.removeprefix(prefix)]) for key, x in one.items())
    assert pipeline_config(tmp_path / "export") == Run.load(checkpoint).config
    index = json.loads((tmp_path / "export" / "model_index.json").read_text())
    assert index["_class_name"] == "CinemaPipeline", "no pipeline of diffusers reads an MLLM's states"
    references = [f"--reference={picture}" for picture in pictures[:2]]
    command(tmp_path / "export", tmp_path / "out.mp4", *references, f"--negative_prompt={NEGATIVE}")
    assert (tmp_path / "out.mp4").stat().st_size > 0


def tensors(folder):
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def test_a_file_of_it_takes_the_place_of_the_i2v_transformer_and_its_original_names_are_read(made, tmp_path):
    theirs, checkpoint = made
    words = ["export", "--checkpoint", checkpoint, "--layout=original", "--output", tmp_path / "original"]
    convert.main(convert._parser(["convert", *map(str, words)]))
    file = tmp_path / "original" / "diffusion_model.safetensors"
    assert "text_projector.linear_1.weight" in load_file(file)
    assert import_checkpoint([theirs.sources[0], file, theirs.sources[2]], tmp_path / "again") == "bindweave"
    one, other = (Run.load(folder).params("dit") for folder in (checkpoint, tmp_path / "again"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(np.asarray(x), np.asarray(other[path])) for path, x in one.items())


def test_too_many_references_and_none_are_refused(made, pictures):
    pipeline = Pipeline.open(made[1])
    with pytest.raises(InputError, match="5 references were given; at most 4 are accepted"):
        pipeline.checked([request([*pictures, pictures[0]])])
    with pytest.raises(InputError, match="there are no references; give at least one picture"):
        pipeline.checked([request([])])


@pytest.mark.parametrize("count", [0, 1])
def test_weights_of_i2v_alone_are_refused_in_one_sentence(made, pictures, count):
    with pytest.raises(InputError, match=r"of Wan.s I2V kind, which .* knows no references of subjects") as found:
        Pipeline.open(made[0].sources[0]).checked([request(pictures[:count])])
    assert "\n" not in str(found.value)


def test_what_does_not_go_together_is_refused_before_anything_is_written(made, tmp_path):
    i2v, transformer, qwen = made[0].sources

    def refused(message, *sources, preset=None):
        with pytest.raises(InputError, match=message) as found:
            import_checkpoint([*sources], tmp_path / "out", preset)
        assert "\n" not in str(found.value)
        assert not (tmp_path / "out").exists()

    refused(r"needs Qwen2\.5-VL too: name the folder as --source", i2v, transformer)
    refused("has a text_projector, which no other reads", i2v, transformer, qwen, preset="phantom")
    refused("has no text_projector", i2v, qwen, preset="bindweave")
    refused("--preset=phantom is for T2V transformers", i2v, preset="phantom")
    refused("there is a dit both in .*BindWeave and in .*transformer", transformer, i2v / "transformer")
    wider = json.loads((qwen / "config.json").read_text())
    (tmp_path / "wide").mkdir()
    wider["text_config"] |= {"hidden_size": 64, "num_attention_heads": 8}
    wider["vision_config"]["out_hidden_size"] = 64
    (tmp_path / "wide" / "config.json").write_text(json.dumps(wider))
    refused(
        "mllm does not fit dit: width of the MLLM's states 64 there and 32 here", i2v, transformer, tmp_path / "wide"
    )
