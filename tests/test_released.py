"""A whole CogVideoX pipeline, made by diffusers with tiny random weights, read where it lies and sampled alike."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.schedulers import scheduling_dpm_cogvideox
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from cinema_jax.diffusion import flow
from cinema_jax.diffusion.schedule import NoiseSchedule, schedule_to_hf
from cinema_jax.errors import InputError
from cinema_jax.released import pipeline_config
from cinema_jax.sampling import Request, load_sampler

SCHEDULERS = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
PROMPT = "a small rabbit runs over the meadow"
SEED, STEPS = 3, 10


def tokenizer(folder):
    """A SentencePiece model in the layout of the released one."""
    folder.mkdir()
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([PROMPT, "the quick brown fox jumps over the lazy dog"] * 20),
            model_writer=file,
            vocab_size=45,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226}
    config |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def pipeline(folder, rotary, scheduler):
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=12,
        text_embed_dim=24,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=rotary,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2, scaling_factor=0.7
    )
    t5 = T5EncoderModel(
        T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu")
    )
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *vae.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
    schedule = NoiseSchedule(snr_shift_scale=1.0 if rotary else 3.0)
    parts = {"transformer": transformer, "vae": vae, "text_encoder": t5, "tokenizer": tokenizer(folder / "own")}
    parts["scheduler"] = SCHEDULERS[scheduler].from_config(schedule_to_hf(schedule, scheduler))
    made = CogVideoXPipeline(**parts)
    made.save_pretrained(folder / "pipeline")
    made.set_progress_bar_config(disable=True)
    return made


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


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_whole_pipeline_equals_diffusers(both, dynamic, monkeypatch):
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
            guidance_scale=6.0,
            use_dynamic_cfg=dynamic,
            latents=channels_second(drawn[0]),
            height=32,
            width=48,
            num_frames=9,
            output_type="np",
        ).frames
    run, sampler = load_sampler(folder)
    assert sampler.settings().solver == scheduler
    config = dataclasses.replace(run.config, flow=dataclasses.replace(run.config.flow, dynamic_guidance=dynamic))
    sampler.cinema.config = config
    latents = sampler.latents([Request(PROMPT, (), SEED)], sampler.settings(steps=STEPS))
    decoded = sampler.cinema.part(sampler.params, "vae").decode(latents)
    assert expected.std() > 0.05, "all frames alike would be equal whatever they were"
    np.testing.assert_allclose((np.asarray(decoded) + 1) / 2, expected, atol=1e-3)


def test_the_flow_sampler_ends_where_ddim_does(both):
    """The same network as a velocity field, in fine steps without guidance: both follow one flow."""
    _, folder, _ = both
    _, sampler = load_sampler(folder)
    request, fine = [Request(PROMPT, (), SEED)], {"steps": 200, "guidance_text": 1.0, "guidance_reference": 1.0}
    ends = [
        np.asarray(sampler.latents(request, sampler.settings(solver=solver, **fine))) for solver in ("ddim", "unipc")
    ]
    assert np.abs(ends[0] - ends[1]).max() < 0.05 * ends[0].std()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read as JSON"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "WanPipeline"}'),
            "_class_name is 'WanPipeline'",
        ),
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
