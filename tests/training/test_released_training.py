"""CINEMA's training from released checkpoints, whole: tiny ones in the published layouts, by the shipped configs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from clips import write_clip
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from PIL import Image
from released import PROMPT, pipeline, wan_pipeline
from transformers import Qwen2VLConfig as TheirQwen2VLConfig
from transformers import Qwen2VLForConditionalGeneration

from cinema_jax.config import parse, to_dict
from cinema_jax.data.example import Reference
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig, Qwen2VLVisionConfig, config_to_hf
from cinema_jax.models.qwen_vl.processing import Template, collate
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler
from cinema_jax.training.loop import Trainer, train
from cinema_jax.training.stages import STAGES
from configs import cogvideox_2b, cogvideox_5b, wan_1_3b, wan_14b

FRAMES, HEIGHT, WIDTH, TEXT_TOKENS = 9, 32, 48, 40


def qwen(folder):
    """A random Qwen2-VL as transformers saves it, with a tokenizer that has the released one's image token."""
    tokenizer = build_word_tokenizer(PROMPT.split(), Template())
    config = Qwen2VLConfig(
        vision=Qwen2VLVisionConfig(depth=1, embed_dim=16, num_heads=2),
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(1, 1, 2),
        image_token_id=tokenizer.convert_tokens_to_ids(Template().image_token),
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(TheirQwen2VLConfig.from_dict(config_to_hf(config))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def videos(folder):
    """Two clips to train on and two held out, each with two subjects."""
    folder.mkdir()
    references = []
    for name, colour in (("rabbit", (250, 240, 230)), ("meadow", (20, 200, 40))):
        Image.new("RGB", (24, 20), colour).save(folder / f"{name}.png")
        references.append({"image": f"{name}.png", "subject": name, "noun": name})
    lines = []
    for name in "abcd":
        write_clip(folder / f"{name}.mp4", frames=20, fps=10, size=(HEIGHT, WIDTH))
        record = {"video": f"{name}.mp4", "caption": PROMPT, "prompt": "a rabbit runs", "references": references}
        lines.append(json.dumps(record))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def shrunk(values, folder):
    """A shipped config at the tiny checkpoints' sizes; what it computes is untouched."""
    values.init = str(folder / "pipeline")
    data = values.data
    data.path, data.frames, data.height, data.width = str(folder / "videos"), FRAMES, HEIGHT, WIDTH
    data.augment.max_side = 48
    # What is compared with PyTorch's own numbers must not be rounded to bf16.
    values.precision = "float32"
    data.buckets = ((FRAMES, HEIGHT, WIDTH, 2), (FRAMES, HEIGHT, WIDTH, 1))
    values.finetune.curriculum, values.finetune.keep_every = ((1, 1, 2, 1e-3),), 0
    data.max_references, data.validation_videos, data.validation_fraction, data.workers = 2, 2, 0.4, 0
    values.flow.sample_steps = 2
    for stage in values.stages:
        section = getattr(values, stage)
        section.steps = section.batch_size = 2
        section.log_every = section.checkpoint_every = 1
        # Two steps should be seen in the averaged weights.
        section.optimizer.warmup_steps, section.optimizer.learning_rate, section.ema_decay = 0, 1e-3, 0.5
    return values


def with_qwen(values, folder):
    """The same, of one with an AlignerNet and a multimodal LLM."""
    values.weights.mllm = values.weights.tokenizer = str(folder / "qwen")
    values.data.reference_height, values.data.reference_width = HEIGHT, WIDTH
    condition = values.condition
    condition.text_tokens, condition.mllm_tokens = TEXT_TOKENS, 320
    condition.mllm_max_pixels = condition.mllm_min_pixels = 28 * 28
    condition.mllm_patches = 2 * 4
    values.aligner_model.num_layers, values.aligner_model.width, values.aligner_model.num_heads = 1, 32, 2
    return values


def made(folder, config, *, rotary, scheduler):
    """A released pipeline, and the config that starts from its folder, where MLLM and videos lie as well."""
    theirs = pipeline(folder, rotary, scheduler)
    qwen(folder / "qwen")
    videos(folder / "videos")
    return theirs, with_qwen(shrunk(config.get_config(), folder), folder)


@pytest.fixture(scope="module")
def released_2b(tmp_path_factory):
    return made(tmp_path_factory.mktemp("2b"), cogvideox_2b, rotary=False, scheduler="ddim")


@pytest.fixture(scope="module")
def released_5b(tmp_path_factory):
    return made(tmp_path_factory.mktemp("5b"), cogvideox_5b, rotary=True, scheduler="dpm")


@pytest.fixture(scope="module")
def workdir(released_2b, tmp_path_factory):
    """The finished run of CogVideoX-2b's config; the demo's trains a transformer of 5b's kind."""
    workdir = tmp_path_factory.mktemp("runs") / "cinema"
    train(Run.open(parse(released_2b[1]), workdir))
    return workdir


def record(workdir, stage):
    return json.loads((workdir / "stages" / f"{stage}.json").read_text())


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """Diffusers' pipeline of Wan, and the finished run of its config that started from the folder."""
    folder, workdir = tmp_path_factory.mktemp("wan"), tmp_path_factory.mktemp("runs") / "wan"
    theirs = wan_pipeline(folder)
    videos(folder / "videos")
    train(Run.open(parse(shrunk(wan_1_3b.get_config(), folder)), workdir))
    return theirs, workdir


def test_both_stages_finish_with_finite_losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage in ("align", "finetune"):
        losses = [line["loss"] for line in lines if line["stage"] == stage and "loss" in line]
        assert len(losses) == 2
        assert np.isfinite([*losses, record(workdir, stage)["eval_loss"]]).all()
        assert all(line["replaced"] == 0 for line in lines if line["stage"] == stage and "replaced" in line)
    assert record(workdir, "align")["eval_flow_ratio"] > 0


def test_the_transformer_of_wan_alone_is_trained_and_goes_back_to_diffusers(wan):
    theirs, workdir = wan
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite([*losses, record(workdir, "finetune")["eval_loss"]]).all()
    assert [path.name for path in (workdir / "parts").iterdir()] == ["dit"]
    assert record(workdir, "finetune")["parts"].keys() == {"vae", "t5", "dit"}
    after, report = WanTransformer3DModel.from_pretrained(workdir / "parts" / "dit", output_loading_info=True)
    assert not any(report.values())
    changed = [not torch.equal(x, after.state_dict()[name]) for name, x in theirs.transformer.state_dict().items()]
    assert all(changed)


def test_the_aligner_of_wan_has_gates_and_zeros_fill_up_its_text(wan, tmp_path):
    """`align` of the variant with a multimodal LLM, from the pipeline that UMT5's run started from."""
    folder = Path(json.loads((wan[1] / "config.json").read_text())["init"]).parent
    qwen(tmp_path / "qwen")
    values = with_qwen(shrunk(wan_1_3b.get_config("mllm"), folder), tmp_path)
    values.stages = ("align",)
    run = Run.open(parse(values), tmp_path / "run")
    train(run)
    assert (run.workdir / "parts" / "aligner" / "config.json").is_file()
    assert "aligner/gate/kernel" in run.params("aligner")
    assert run.part_config("dit").max_text_seq_length > TEXT_TOKENS == run.part_config("aligner").num_latents
    assert np.isfinite(record(run.workdir, "align")["eval_flow_ratio"])


def test_the_configs_of_wan_are_alike_but_for_the_network():
    small, large = (to_dict(parse(shrunk(module.get_config(), Path("x")))) for module in (wan_1_3b, wan_14b))
    different = {name for name in small if small[name] != large[name]}
    assert different == {"dit_model"}
    assert small["condition"]["empty_references"] == "zeros"
    assert (small["data"]["references_like_video"], small["flow"]["shift"]) == (True, 5.0)


def test_aligner_and_transformer_alone_are_trained(released_2b, workdir):
    folder = str(Path(released_2b[1].init).parent)
    align, finetune = record(workdir, "align"), record(workdir, "finetune")
    assert sorted(path.name for path in (workdir / "parts").iterdir()) == ["aligner", "dit"]
    for part in ("vae", "mllm", "dit"):
        assert finetune["digests"][part] == align["digests"][part]
        assert finetune["parts"][part].startswith(folder)
    assert align["parts"]["aligner"] == "random"
    assert finetune["digests"]["aligner"] != align["digests"]["aligner"]


def test_the_trained_transformer_goes_back_to_diffusers(released_2b, workdir):
    before = released_2b[0].transformer
    after, report = CogVideoXTransformer3DModel.from_pretrained(workdir / "parts" / "dit", output_loading_info=True)
    assert not any(report.values())
    own = {name for name in before.config if not name.startswith("_")}
    assert {name: after.config[name] for name in own} == {name: before.config[name] for name in own}
    changed = [not torch.equal(x, after.state_dict()[name]) for name, x in before.state_dict().items()]
    # Those that no loss reaches, as the last layer's text, do not move.
    assert np.mean(changed) > 0.9


@pytest.mark.parametrize("released", ["released_2b", "released_5b"])
def test_finetune_starts_from_what_the_released_transformer_knows(released, tmp_path, request):
    """Its velocity at a state of the flow is diffusers' noise less its data, there where a timestep is as noisy."""
    theirs, values = request.getfixturevalue(released)
    run, mesh = Run.open(parse(values), tmp_path), sharding.make_mesh()
    with jax.set_mesh(mesh):
        trainer = Trainer(run, STAGES["finetune"], mesh)
        cinema, params = trainer.cinema, {**trainer.frozen, **sharding.place(trainer.initial, mesh)}
        prompts = collate([run.preprocessor().conditions(prompt, ()) for prompt in ("a rabbit runs", PROMPT)])
        conditions = jax.jit(cinema.conditions)(params, prompts)
        timesteps = np.array([999, 420])
        alphas = theirs.scheduler.alphas_cumprod.numpy().astype(np.float64)[timesteps]
        signal, noise = (np.sqrt(x).reshape(2, 1, 1, 1, 1).astype(np.float32) for x in (alphas, 1 - alphas))
        z = np.random.default_rng(0).normal(size=(2, 3, 4, 6, 4)).astype(np.float32)
        time = (noise / (signal + noise)).reshape(2)
        found = jax.jit(cinema.velocity)(params, z / (signal + noise), time, conditions)
    with torch.no_grad():
        states, text = torch.tensor(z).permute(0, 1, 4, 2, 3), torch.tensor(np.asarray(conditions.text))
        rotary = None
        if theirs.transformer.config.use_rotary_positional_embeddings:
            rotary = theirs._prepare_rotary_positional_embeddings(HEIGHT, WIDTH, z.shape[1], "cpu")
        v = theirs.transformer(states, text, torch.tensor(timesteps), image_rotary_emb=rotary).sample
    v = v.permute(0, 1, 3, 4, 2).numpy()
    expected = (noise * z + signal * v) - (signal * z - noise * v)
    assert conditions.entities.shape[1] == 2
    assert np.abs(v).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("trained", ["workdir", "wan"])
def test_two_references_become_a_video(trained, request):
    workdir = request.getfixturevalue(trained)
    _, sampler = load_sampler(workdir[1] if trained == "wan" else workdir)
    rng = np.random.default_rng(0)
    sizes = {"rabbit": (40, 30, 3), "meadow": (20, 50, 3)}
    pictures = [Reference(rng.integers(0, 255, size, dtype=np.uint8), None, name) for name, size in sizes.items()]
    video = sampler([Request("a rabbit runs", tuple(pictures))], sampler.settings())
    assert video.shape == (1, FRAMES, HEIGHT, WIDTH, 3)
    assert video.std() > 0


def test_a_manifest_with_more_references_than_configured_is_refused(released_2b, tmp_path):
    values = released_2b[1].copy_and_resolve_references()
    values.data.max_references, values.data.buckets, values.finetune.curriculum = 1, (), ()
    with pytest.raises(InputError, match='"references" names 2 subjects; at most 1 are configured'):
        Run.open(parse(values), tmp_path).source("train")
