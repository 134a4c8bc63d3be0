"""A shipped config at its networks' full width, two layers each, through all stages and phases on small clips.

As a program, trains it: python dry_run.py CONFIG WORKDIR
"""

import importlib
import json
import logging
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from clips import write_images
from ml_collections import ConfigDict
from PIL import Image
from tiny import random_params

from cinema_jax.config import parse
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from cinema_jax.models.qwen_vl.processing import Template
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer
from cinema_jax.training import beginning, loop

HEIGHT, WIDTH, SIDE = 32, 48, 32
# Clips of seventeen frames, of nine, and pictures; each with up to four subjects.
KINDS = {"long": (17, 16), "short": (9, 16), "still": (1, 8)}
NOUNS = ("owl", "fox", "cat", "hen")
CURRICULUM = ((1, 2, 8, 2e-5), (9, 5, 4, 2e-5))
STEPS = {"align": 3, "finetune": 9}


def videos(folder: Path) -> Path:
    """Forty clips, every one of another content, and a manifest."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for noun in NOUNS:
        Image.fromarray(rng.integers(0, 255, (60, 40, 3), dtype=np.uint8)).save(folder / f"{noun}.png")
    for kind, (frames, count) in KINDS.items():
        for i in range(count):
            images = [rng.integers(0, 255, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(frames)]
            name = f"{kind}{i}.png" if kind == "still" else f"{kind}{i}.mp4"
            if kind == "still":
                Image.fromarray(images[0]).save(folder / name)
            else:
                write_images(folder / name, images, 8)
            shown = NOUNS[: (1, 2, 3, 1)[i % 4]]
            references = [{"image": f"{noun}.png", "subject": noun, "noun": noun} for noun in shown]
            lines.append({"video": name, "caption": " ".join(shown) + " meet in the snow", "prompt": "they meet"})
            lines[-1]["references"] = references
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def weights(values: ConfigDict, folder: Path) -> None:
    """Random ones of two layers, in the layout as published; `values` name them."""
    words = build_word_tokenizer([*NOUNS, "meet", "in", "the", "snow", "they"], Template())
    image = words.convert_tokens_to_ids(Template().image_token)
    values.mllm_model.update(vocab_size=len(words), image_token_id=image, num_hidden_layers=2)
    values.mllm_model.vision.depth = values.t5_model.num_layers = values.dit_model.num_layers = 2
    # Its width is nobody's concern here, and half of the time would be its own.
    values.vae_model.block_out_channels = (32, 32, 64, 64)
    values.t5_model.vocab_size = len(words)
    values.data.path = values.data.path or "videos"
    config = parse(values)
    for name in ("tokenizer", "t5_tokenizer"):
        words.save_pretrained(folder / name)
        values.weights[name] = str(folder / name)
    for name in ("vae", "t5", "mllm", "dit"):
        sizes = getattr(config, f"{name}_model")
        params = {path: x.astype(ml_dtypes.bfloat16) for path, x in random_params(name, sizes).items()}
        parts.write(name, sizes, params, folder / name)
        values.weights[name] = str(folder / name)


def values_of(config: str, folder: Path) -> ConfigDict:
    """The config: its networks' widths, its buckets, phases and everything else, on small clips."""
    values = importlib.import_module(f"configs.{config}").get_config()
    data = values.data
    data.frames, data.height, data.width = 17, HEIGHT, WIDTH
    data.buckets = tuple((17, HEIGHT, WIDTH, references) for *_, references in data.buckets)
    data.reference_height = data.reference_width = SIDE
    data.workers, data.validation_fraction, data.validation_videos = 0, 0.2, 4
    values.condition.mllm_max_pixels = values.condition.mllm_min_pixels = 56 * 56
    values.condition.mllm_patches, values.condition.mllm_tokens = 4 * 16, 256
    values.flow.sample_steps, values.flow.tiled_decoding, values.evaluate_identities = 1, False, 2
    values.dit_model.sequence_multiple = 1
    for stage, steps in STEPS.items():
        section = values[stage]
        section.steps, section.batch_size, section.log_every, section.eval_every = steps, 4, 1, 0
        section.checkpoint_every, section.keep_every, section.keep = steps, 0, 1
    values.finetune.curriculum = CURRICULUM
    data.path = str(videos(folder / "videos"))
    weights(values, folder)
    return values


def main(config: str, folder: str) -> None:
    """Train it."""
    # absl has handlers of its own there.
    logging.basicConfig(level=logging.INFO, force=True)
    values = values_of(config, Path(folder))
    run = Run(parse(values), Path(folder, "run"))
    beginning.check(run)
    loop.train(Run.open(run.config, run.workdir))


if __name__ == "__main__":
    main(*sys.argv[1:])
