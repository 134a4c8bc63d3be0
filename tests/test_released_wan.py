"""A whole Wan2.1 pipeline, made by diffusers with tiny random weights, read where it lies and sampled alike."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from diffusers import UniPCMultistepScheduler
from ml_collections import ConfigDict
from PIL import Image
from released import PROMPT, wan_pipeline
from tiny import tiny_values

from cinema_jax import generate
from cinema_jax.cinema import Cinema, to_uint8
from cinema_jax.config import parse, to_dict
from cinema_jax.data.example import Reference
from cinema_jax.diffusion import flow
from cinema_jax.errors import InputError
from cinema_jax.experiment.pipelines import pipeline_config
from cinema_jax.experiment.presets import PHANTOM
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training.stages import STAGES

SEED, STEPS = 3, 10


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Diffusers' pipeline, and the folder in which it saved itself."""
    folder = tmp_path_factory.mktemp("released")
    return wan_pipeline(folder), folder / "pipeline"


@pytest.fixture(scope="module")
def loaded(both):
    """Ours."""
    return load_sampler(both[1])


def noise():
    """What our sampler starts from, of 9 frames of 32 x 48 pixels, channels second."""
    keys = jnp.stack([jax.random.key(SEED, impl="threefry2x32")])
    return torch.tensor(np.asarray(flow.sample_noise(keys, (3, 4, 6, 4)))).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize(
    ("shift", "guidance", "negative"), [(3.0, 5.0, ""), (5.0, 5.0, "the lazy &amp;amp; dog"), (3.0, 1.0, "")]
)
def test_the_whole_pipeline_equals_diffusers(both, loaded, shift, guidance, negative):
    theirs, _ = both
    theirs.scheduler = UniPCMultistepScheduler.from_config(theirs.scheduler.config, flow_shift=shift)
    sizes = {"height": 32, "width": 48}
    with torch.no_grad():
        expected = theirs(
            PROMPT,
            negative,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=noise(),
            num_frames=9,
            output_type="np",
            **sizes,
        ).frames
    _, sampler = loaded
    assert sampler.settings(**sizes).shift == 3.0, "that of the folder"
    scales = {"guidance_text": guidance, "guidance_reference": guidance}
    settings = sampler.settings(steps=STEPS, frames=9, shift=shift, **sizes, **scales)
    latents = sampler.latents([Request(PROMPT, (), SEED, negative)], settings)
    decoded = jax.jit(lambda params, z: sampler.cinema.part(params, "vae").decode(z))(sampler.params, latents)
    assert expected.std() > 0.05, "all frames alike would be equal whatever they were"
    np.testing.assert_allclose((np.asarray(decoded) + 1) / 2, expected, atol=1e-3)


def test_by_default_it_samples_as_the_released_pipeline(loaded):
    run, sampler = loaded
    settings = sampler.settings()
    assert (settings.frames, settings.height, settings.width, run.config.data.fps) == (81, 480, 832, 16)
    assert (settings.steps, settings.guidance_text, settings.guidance_reference) == (50, 5, 5)
    assert len(sampler.guidance(settings)[0]) == 2


def command(folder, output, *more):
    arguments = [f"--checkpoint={folder}", f"--prompt={PROMPT}", f"--output={output}", "--steps=2", "--frames=5"]
    with flagsaver.flagsaver(reference=[]):
        flags.FLAGS(["generate", *arguments, "--height=32", "--width=48", *more])
        generate.main()


def test_generate_takes_the_folder_as_a_checkpoint(both, tmp_path):
    command(both[1], tmp_path / "out.mp4", "--shift=5")
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_references_for_text_to_video_weights_are_refused_in_one_sentence(both, tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"references given: 1, but this checkpoint makes videos of a prompt alone"):
        command(both[1], tmp_path / "out.mp4", f"--reference={tmp_path / 'a.png'}")
    assert not (tmp_path / "out.mp4").exists()


def test_training_starts_from_the_folder_with_references_as_phantom_has_them(both, tmp_path):
    """One example as it is, one whose references were dropped; no multimodal LLM is needed where T5 reads."""
    values = tiny_values()
    values.init, values.stages = str(both[1]), ("finetune",)
    values.weights.update(dict.fromkeys(values.weights, ""))
    values.dit_model, values.condition.conditioner = ConfigDict(to_dict(WanConfig())), "t5"
    for section, changes in PHANTOM.items():
        values[section].update(changes)
    values.condition.text_tokens, values.condition.clean_text = 512, True
    values.data.source, values.data.path, values.finetune.trainable = "folder", "videos", ("dit/.*",)
    run = Run.open(parse(values), tmp_path / "run")
    stage, preprocessor = STAGES["finetune"], run.preprocessor()
    assert set(stage.needed(run.config)) == {"vae", "t5", "dit"}
    configs, params, _ = run.load_parts(stage.needed(run.config))
    cinema, params = Cinema(run.config, configs), jax.tree.map(jnp.asarray, params)
    picture = Reference(np.full((20, 40, 3), 90, np.uint8), None, "a")
    examples = [preprocessor.laid_out(PROMPT, [picture, picture], shown) for shown in (True, False)]
    batch = collate([x | {"latents": np.ones((2, 4, 4, 4), np.float32)} for x in examples])
    told = jax.jit(cinema.conditions)(params, batch)
    assert told.entities.shape == (2, 4, 4, 4, 4), "as large as the video"
    assert np.any(told.entities[0])
    assert not np.any(told.entities[1])
    np.testing.assert_array_equal(told.entity_lengths, [2, 2])
    keys = flow.example_keys(jax.random.key(0, impl="threefry2x32"), jnp.arange(2))

    def loss(dit, params, batch, keys):
        return stage.loss(cinema)(params | dit, batch, keys)[0]

    dit = {path: x for path, x in params.items() if path.startswith("dit/")}
    gradients = jax.jit(jax.grad(loss))(dit, params, batch | {"index": np.arange(2)}, keys)
    assert all(np.any(x) and np.all(np.isfinite(x)) for x in gradients.values())
    values.condition.text_tokens = 600
    longer = Run.open(parse(values), tmp_path / "longer")
    with pytest.raises(InputError, match=r"reads 512 text tokens: set config\.condition\.text_tokens=512"):
        longer.part_configs(("t5", "dit"))


def spoiled(folder, copy, file, **changes):
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "WanVACEPipeline"}, "accepted: CogVideoXPipeline, WanPipeline, WanImage"),
        ("model_index.json", {"boundary_ratio": 0.875}, "two transformers of a Wan2.2, which are not read yet"),
        ("model_index.json", {"expand_timesteps": True}, "Wan2.2 whose tokens have times of their own"),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "_class_name is 'WanVACE"),
        ("vae/config.json", {"is_residual": True}, "is_residual is True"),
        ("scheduler/scheduler_config.json", {"solver_order": 3}, "solver_order is 3; only 2 is supported"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "use_flow_sigmas is False"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "_class_name is 'DDIMScheduler'"),
    ],
)
def test_other_pipelines_are_refused_with_a_reason(both, tmp_path, file, changes, message):
    with pytest.raises(InputError, match=message):
        pipeline_config(spoiled(both[1], tmp_path / "copy", file, **changes))


def test_a_large_video_is_decoded_in_tiles_where_that_is_asked_for(loaded):
    """One frame of 16 x 272 pixels, which is wider than a tile."""
    _, sampler = loaded
    size, request = {"steps": 1, "frames": 1, "height": 16, "width": 272}, Request(PROMPT, (), SEED)
    settings = sampler.settings(**size, tiled_decoding=True)
    assert not sampler.settings(**size).tiled_decoding, "by default as WanPipeline"
    latents = sampler.latents([request], settings)
    whole, tiled = (np.asarray(sampler.decode(sampler.params, latents, way)) for way in (False, True))
    vae = jax.jit(lambda params, z: to_uint8(sampler.cinema.part(params, "vae").decode_tiled(z)))
    np.testing.assert_array_equal(tiled, vae(sampler.params, latents))
    np.testing.assert_array_equal(sampler([request], settings), tiled)
    assert np.any(whole != tiled)
