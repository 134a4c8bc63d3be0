"""The weights that ship with the project are those whose figures the documents give.

After weights were packaged anew, `python tests/test_assets.py` writes their digests to `assets.json`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinema_jax.cinema import Cinema
from cinema_jax.data.critters.source import Critters
from cinema_jax.data.pipeline import Examples
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import collate
from cinema_jax.training.stages import STAGES
from cinema_jax.training.stages.mllm import describe_held_out
from cinema_jax.training.stages.t5 import t5_loss

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("assets.json")
PRETRAINED = ROOT / "weights/demo_pretrain"
CLIPS = 4


def digests() -> dict[str, str]:
    """The sha256 of all weights, their configs and the tokenizer."""
    files = [
        file
        for folder in (parts.PACKAGED, PRETRAINED)
        for file in folder.rglob("*")
        if file.suffix in (".safetensors", ".json")
    ]
    return {str(file.relative_to(ROOT)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def test_every_file_is_the_one_that_was_packaged():
    assert digests() == json.loads(TABLE.read_text())


@pytest.fixture(scope="module")
def demo():
    return Run.load(parts.PACKAGED / "demo")


def of(run: Run, *names: str):
    configs, params, _ = run.load_parts(names)
    return Cinema(run.config, configs), {path: jnp.asarray(x) for path, x in params.items()}


@pytest.fixture(scope="module")
def clips():
    source = Critters("validation", frames=9, height=64, width=64)
    return np.stack([source.video(index) for index in range(CLIPS)])


@pytest.fixture(scope="module")
def coded(demo, clips):
    """The clips' latents, and how far the packaged VAE brings them back."""
    cinema, params = of(demo, "vae")

    @jax.jit
    def both(params, video):
        _, metrics = STAGES["vae"].evaluate(cinema)(params, {"video": video}, None)
        return cinema.encode_video(params, video), metrics["psnr"]

    return both(params, clips)


def test_the_vae_brings_clips_back(coded):
    assert coded[1] == pytest.approx(28.1, abs=1)


def test_the_llm_names_attributes_of_a_dozen_critters(demo):
    run = dataclasses.replace(demo, config=dataclasses.replace(demo.config, evaluate_identities=12))
    cinema, params = of(run, "mllm")
    assert describe_held_out(run, cinema, params)["named_attributes"] > 0.8


@pytest.mark.release
def test_t5_finds_words_that_were_replaced(demo):
    cinema, params = of(demo, "t5")
    examples = Examples(demo.source("validation"), demo.preprocessor(), range(32))
    batch = collate([examples.t5(row, np.random.default_rng(row)) for row in range(32)])
    keys = jax.vmap(jax.random.key)(jnp.arange(32))
    _, metrics = jax.jit(t5_loss(cinema))(params, batch, keys)
    # It learned further with the transformer, which asks for no words; untrained it finds one of hundreds.
    assert metrics["corrupted_accuracy"].ratio > 0.05


@pytest.mark.release
@pytest.mark.parametrize(
    ("folder", "stage", "loss"), [(parts.PACKAGED / "demo", "finetune", 0.3590), (PRETRAINED, "pretrain", 0.6658)]
)
def test_a_transformer_knows_held_out_videos(coded, folder, stage, loss):
    run = Run.load(folder)
    cinema, params = of(run, *STAGES[stage].needed(run.config))
    examples = Examples(run.source("validation"), run.preprocessor(), range(CLIPS), np.asarray(coded[0]), augment=False)
    batch = collate([STAGES[stage].example(examples, row, np.random.default_rng(row)) for row in range(CLIPS)])
    batch["index"] = np.arange(CLIPS, dtype=np.int32)
    found, _ = jax.jit(STAGES[stage].evaluate(cinema))(params, batch, None)
    assert found == pytest.approx(loss, rel=0.01)


if __name__ == "__main__":
    TABLE.write_text(json.dumps(digests(), indent=2) + "\n")
