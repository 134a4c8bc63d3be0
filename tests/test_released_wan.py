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
from PIL import Image
from released import PROMPT, wan_pipeline

from cinema_jax import generate
from cinema_jax.diffusion import flow
from cinema_jax.errors import InputError
from cinema_jax.exchange.pipelines import pipeline_config
from cinema_jax.sampling import Request, load_sampler

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


def spoiled(folder, copy, file, **changes):
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    values = json.loads((copy / file).read_text()) | changes
    (copy / file).write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "accepted: CogVideoXPipeline, WanPipeline"),
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
