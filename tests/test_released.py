"""A whole CogVideoX pipeline, made by diffusers with tiny random weights, read where it lies and sampled alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from diffusers import CogVideoXDPMScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox
from released import PROMPT, pipeline

from cinema_jax import generate
from cinema_jax.config import default, parse
from cinema_jax.diffusion import flow
from cinema_jax.errors import InputError
from cinema_jax.experiment.pipelines import pipeline_config
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler

SEED, STEPS = 3, 10


@pytest.fixture(scope="module", params=[("ddim", False), ("dpm", True)], ids=["2b, ddim", "5b, dpm"])
def both(request, tmp_path_factory):
    """Diffusers' pipeline, and the folder in which it saved itself."""
    folder = tmp_path_factory.mktemp("released")
    scheduler, rotary = request.param
    return pipeline(folder, rotary, scheduler), folder / "pipeline", scheduler


def noises(count):
    """The noise that our sampler starts from, and that of each step."""
    keys = jnp.stack([jax.random.key(SEED, impl="threefry2x32")])
    fold = jax.vmap(jax.random.fold_in, (0, None))
    return [np.asarray(flow.sample_noise(fold(keys, i) if i else keys, (3, 4, 6, 4))) for i in range(count + 1)]


def channels_second(x):
    return torch.tensor(x).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize(("guidance", "dynamic"), [(6.0, False), (6.0, True), (1.0, True)])
def test_the_whole_pipeline_equals_diffusers(both, guidance, dynamic, monkeypatch):
    theirs, folder, scheduler = both
    drawn, taken = noises(STEPS), [0]
    step = CogVideoXDPMScheduler.step

    def counting(self, *arguments, **options):
        taken[0] += 1
        return step(self, *arguments, **options)

    monkeypatch.setattr(CogVideoXDPMScheduler, "step", counting)
    monkeypatch.setattr(scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: channels_second(drawn[taken[0]]))
    with torch.no_grad():
        expected = theirs(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            use_dynamic_cfg=dynamic,
            latents=channels_second(drawn[0]),
            height=32,
            width=48,
            num_frames=9,
            max_sequence_length=40,
            output_type="np",
        ).frames
    run, sampler = load_sampler(folder)
    assert sampler.settings().solver == scheduler
    config = dataclasses.replace(run.config, flow=dataclasses.replace(run.config.flow, dynamic_guidance=dynamic))
    sampler.cinema.config = config
    settings = sampler.settings(steps=STEPS, guidance_text=guidance, guidance_reference=guidance)
    latents = sampler.latents([Request(PROMPT, (), SEED)], settings)
    decoded = sampler.cinema.part(sampler.params, "vae").decode(latents)
    assert expected.std() > 0.05, "all frames alike would be equal whatever they were"
    np.testing.assert_allclose((np.asarray(decoded) + 1) / 2, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read as JSON"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "LTXPipeline"}'),
            "_class_name is 'LTXPipeline'; accepted: CogVideoXPipeline, WanPipeline",
        ),
        (lambda f: (f / "model_index.json").write_text("0"), "model_index.json holds no object"),
        (lambda f: (f / "vae").rename(f / "elsewhere"), "has no vae"),
        (
            lambda f: (f / "vae/config.json").write_text('{"_class_name": "AutoencoderKLHunyuanVideo"}'),
            "vae/config.json does not describe a vae",
        ),
    ],
)
def test_other_pipelines_are_refused_with_a_reason(both, tmp_path, spoil, message):
    _, folder, _ = both
    copy = tmp_path / "copy"
    for file in folder.rglob("*.json"):
        (copy / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / file.relative_to(folder)).write_text(file.read_text())
    spoil(copy)
    with pytest.raises(InputError, match=message):
        pipeline_config(copy)


def test_generate_takes_the_folder_as_a_checkpoint(both, tmp_path, monkeypatch):
    """By the command itself, without a reference: the released model reads text alone."""
    _, folder, _ = both
    output = tmp_path / "out.gif"
    arguments = [f"--checkpoint={folder}", f"--prompt={PROMPT}", f"--output={output}", "--steps=1", "--frames=1"]
    with flagsaver.flagsaver(reference=[]):
        flags.FLAGS(["generate", *arguments])
        generate.main()
    assert output.stat().st_size > 0


def test_training_starts_from_the_folder(both, tmp_path):
    """Parts, sizes and tokenizer come from `config.init`; another noise schedule than the folder's is refused."""
    _, folder, scheduler = both
    values = default()
    values.init, values.stages = str(folder), ("finetune",)
    values.weights.update({name: "" for name in ("vae", "t5", "t5_tokenizer")})
    values.flow.prediction, values.condition.text_tokens = "v_prediction", 40
    values.schedule.snr_shift_scale = 1.0 if scheduler == "dpm" else 3.0
    run = Run.open(parse(values), tmp_path / "run")
    assert run.part_config("dit").num_layers == 2
    assert {run.folder(name).parent for name in ("vae", "t5", "dit")} == {folder}
    assert run.folder("aligner") is None
    assert len(run.tokenizer("t5_tokenizer")(PROMPT)["input_ids"]) == 34
    assert run.params("dit")["dit/proj_out/kernel"].shape == (32, 16)
    values.schedule.snr_shift_scale = 2.0
    with pytest.raises(
        InputError,
        match=r"trained otherwise: config\.schedule\.snr_shift_scale is 3\.0 there and 2\.0 here"
        if scheduler == "ddim"
        else "snr_shift_scale is 1",
    ):
        Run.open(parse(values), tmp_path / "other")
