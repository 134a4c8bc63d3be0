"""Every kind of file that the program opens: a good one, and what opens it and takes all that it says."""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import prepared
from absl import logging
from clips import write_clip
from encoded import encode
from large_models import save_clip, save_dino
from PIL import Image
from tiny import DRAWN, random_run, tiny_config

from cinema_jax.data.critters import cutout
from cinema_jax.data.critters.cutout import find_cutouts
from cinema_jax.data.example import Reference
from cinema_jax.data.folder import Folder
from cinema_jax.data.images import read_image, read_mask
from cinema_jax.data.records import Records
from cinema_jax.data.video import frame_at, probe, read_frames
from cinema_jax.devices import sharding
from cinema_jax.diffusion.schedule import NoiseSchedule, schedule_to_hf
from cinema_jax.evaluation import opens2v, videos
from cinema_jax.evaluation.judge.config import JudgeConfig
from cinema_jax.evaluation.judge.weights import read_judge
from cinema_jax.evaluation.large import Clip, Dino
from cinema_jax.exchange.card import model_card
from cinema_jax.exchange.sources import find
from cinema_jax.experiment import amending, parts, results
from cinema_jax.experiment.checkpoint import Checkpoints, newest_params, read_metadata
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import stands_for
from cinema_jax.models.cogvideox import vae_weights, weights
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer, load_tokenizer
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan.transformer_config import WanConfig
from cinema_jax.sampling import lists
from cinema_jax.training import metrics, state
from cinema_jax.training.goodput import Goodput
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.weights.tensors import open_tensors

NOT_OPENED = ("*.lock", "*.txt")


@dataclasses.dataclass(frozen=True)
class Target:
    """Files of one kind."""

    name: str
    # Writes good ones into a folder that is there.
    make: Callable[[Path], Any]
    # Opens them; with good ones it returns.
    use: Callable[[Path], Any]
    # Which are damaged.
    files: Sequence[str] = ("**/*",)
    # Examples for each that others get: some are slow.
    share: float = 1.0


_PIXELS = np.random.default_rng(0).integers(0, 255, (24, 30, 4), np.uint8)


def _images(folder: Path) -> None:
    rgba, rgb = Image.fromarray(_PIXELS), Image.fromarray(_PIXELS[..., :3])
    rgba.save(folder / "a.png")
    rgb.quantize(16).save(folder / "p.png", transparency=3)
    Image.fromarray(_PIXELS[..., 0].astype(np.uint16) * 255).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "e.jpg", exif=exif)
    rgb.convert("CMYK").save(folder / "c.jpg")
    for suffix in ("webp", "tiff", "bmp", "gif", "jp2", "ppm"):
        rgb.save(folder / f"x.{suffix}")
    rgb.save(folder / "lzw.tiff", compression="tiff_lzw")
    rgba.save(folder / "a.webp", lossless=True)
    if "AVIF" in Image.SAVE:
        rgb.save(folder / "x.avif")


def _use_images(folder: Path) -> None:
    for file in folder.iterdir():
        read_image(file)
        read_mask(file)


def _clips(folder: Path) -> None:
    for suffix in (".mp4", ".mkv", ".webm", ".avi", ".ts", ".mov"):
        write_clip(folder / f"x{suffix}", frames=6, fps=8)


def _use_clips(folder: Path) -> None:
    for file in folder.iterdir():
        probe(file)
        read_frames(file, 3, 8, 32, 32, 0.1)
        frame_at(file, 2)


def _manifest(folder: Path) -> None:
    write_clip(folder / "v.mp4", frames=8, fps=8)
    Image.fromarray(_PIXELS).save(folder / "r.png")
    references = [
        {"image": "r.png", "mask": "r.png", "subject": "a", "noun": "dog", "box": [1, 1, 20, 20]},
        {"video": "v.mp4", "frame": 1, "subject": "b"},
    ]
    lines = [{"video": "v.mp4", "caption": f"c {i}", "id": str(i), "start": 0, "group": "g"} for i in range(3)]
    lines[0] |= {"end": 1.0, "prompt": "p", "references": references}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _use_manifest(folder: Path) -> None:
    size = {"frames": 5, "height": 32, "width": 32, "fps": 8.0}
    source = Folder(folder, split="all", validation_fraction=0, **size)
    for index in range(len(source)):
        source.content(index)
        source.conditions(index, np.random.default_rng(0))


def _requests(folder: Path) -> None:
    Image.fromarray(_PIXELS).save(folder / "r.png")
    lines = [{"prompt": f"it jumps {i}", "references": ["r.png"], "seed": i, "output": f"{i}.gif"} for i in range(3)]
    lines[0] |= {"negative_prompt": "p", "frames": 9, "height": 64, "width": 64}
    (folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _use_requests(folder: Path) -> None:
    for entry in lists.read(folder / "requests.jsonl").entries:
        for picture in entry.pictures:
            read_image(picture)


def _records(folder: Path) -> None:
    assert prepared.run(prepared.make_folder(folder.parent / "clips"), folder)
    shutil.rmtree(folder / "locks")


def _use_records(folder: Path) -> None:
    source = Records(str(folder), split="train", validation_fraction=0.5, **prepared.SIZE)
    source.check_vae("a stand-in")
    for index in range(len(source)):
        source.conditions(index, np.random.default_rng(0))
        np.asarray(source.latents[index], np.float32)


def _use_preparation(folder: Path) -> None:
    work = prepared.preparation(folder.parent / "clips", folder)
    work.check_key()
    if not any(work.missing(shard) for shard in range(work.shards)):
        work._close()


def _run(folder: Path) -> None:
    random_run(folder)


def _use_parts(folder: Path) -> None:
    for name in DRAWN:
        where = folder / "parts" / name
        assert parts.identify(where) == name or name == "aligner"
        for x in parts.read(name, parts.read_config(name, where), where).values():
            np.asarray(x[:1] if len(x.shape) else x)


def _use_run_config(folder: Path) -> None:
    run = Run.load(folder)
    amending.has_begun(folder)
    for name in DRAWN:
        run.part_config(name)
    find(folder)


def _work(folder: Path) -> None:
    random_run(folder)
    record = {"steps": 2, "loss": 0.5, "parts": {"dit": "random"}, "digests": {"dit": "ab"}, "written": {"dit": "ab"}}
    (folder / "stages").mkdir()
    parts.write_json(folder / "stages" / "finetune.json", record)
    rows = [{"step": i, "stage": "finetune", "loss": 0.5, "grad": None} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = Goodput(folder / "goodput.json")
    clock.begin("finetune", 0)
    clock.write(saved_step=1)


def _use_work(folder: Path) -> None:
    run = Run.load(folder)
    run.written()
    metrics.truncate(folder / "metrics.jsonl", "finetune", 2)
    clock = Goodput(folder / "goodput.json")
    clock.begin("finetune", 1)
    clock.book("step")
    assert clock.share < 1
    results.record(folder, "finetune")
    amending._done(folder)
    model_card(stands_for(run), ["dit"], "CinemaPipeline")


_OPTIMIZER = make_optimizer(tiny_config().finetune.optimizer, 5)
_PARAMS = {"dit/kernel": np.arange(96, dtype=np.float32).reshape(2, 8, 6), "dit/bias": np.ones(5, np.float32)}


def _checkpoint(folder: Path) -> None:
    mesh = sharding.make_mesh()
    description = {"stage": "finetune", "parts": {}, "digests": {}, "unreadable": {}}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state.create(_PARAMS, _OPTIMIZER, mesh, seed=1), description)


def _use_checkpoint(folder: Path) -> None:
    step, params = newest_params(folder)
    # Sums find what is damaged, or else nothing is.
    assert step == 0
    for path, x in params.items():
        np.testing.assert_array_equal(np.asarray(x), _PARAMS[path])
    read_metadata(folder / "0")


def _restore(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        if checkpoints.latest is not None:
            restored, _ = checkpoints.restore(state.abstract(_PARAMS, _OPTIMIZER, sharding.make_mesh()))
            jax.tree.map(np.testing.assert_array_equal, restored.params, _PARAMS)


def _stored_part(folder: Path) -> None:
    from orbax.checkpoint import v1 as ocp

    config = tiny_config().aligner_model
    params = {path: np.zeros(x.shape, x.dtype) for path, x in parts.structure("aligner", config)[1].items()}
    ocp.save_checkpointables(folder / parts.STORED.parent, {parts.STORED.name: params})
    parts.write_json(folder / "config.json", parts.kind_of("aligner", config).config_to_hf(config))


def _use_stored_part(folder: Path) -> None:
    for x in parts.read("aligner", parts.read_config("aligner", folder), folder).values():
        np.asarray(x)


def _pipeline(folder: Path) -> None:
    values = {
        "transformer/config.json": weights.config_to_hf(CogVideoXConfig(num_layers=1)),
        "vae/config.json": vae_weights.config_to_hf(CogVideoXVAEConfig()),
        "scheduler/scheduler_config.json": schedule_to_hf(NoiseSchedule(), "ddim"),
        "model_index.json": {"_class_name": "CogVideoXPipeline"},
    }
    for name, value in values.items():
        (folder / name).parent.mkdir(exist_ok=True)
        parts.write_json(folder / name, value)
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()


def _use_pipeline(folder: Path) -> None:
    run = Run.load(folder)
    run.part_config("dit")
    run.part_config("vae")


_VAE = CogVideoXVAEConfig(block_out_channels=(32,) * 4, layers_per_block=1)
_CONFIGS = {"dit": WanConfig(num_layers=1), "t5": T5Config(model_type="umt5"), "vae": _VAE}


def _configs(folder: Path) -> None:
    for name, config in _CONFIGS.items():
        (folder / name).mkdir()
        parts.write_json(folder / name / "config.json", parts.kind_of(name, config).config_to_hf(config))


def _use_configs(folder: Path) -> None:
    for name in _CONFIGS:
        parts.structure(name, parts.read_config(name, folder / name))


def _tokenizer(folder: Path) -> None:
    build_word_tokenizer(["a", "bird", "blue"]).save_pretrained(folder)


def _pieces(folder: Path) -> None:
    from released import tokenizer

    tokenizer(folder / "t5")


def _use_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer(["a blue bird", "two"], add_special_tokens=False)
    len(tokenizer)


def _tensors(folder: Path) -> None:
    from cinema_jax.weights import shards

    for i in range(2):
        shards.write_tensors(folder / f"m-{i}.safetensors", {f"t{i}": np.ones((3, 4), np.float32)})
    places = {f"t{i}": f"m-{i}.safetensors" for i in range(2)}
    parts.write_json(folder / "m.safetensors.index.json", {"metadata": {"total_size": 96}, "weight_map": places})


def _use_tensors(folder: Path) -> None:
    for x in open_tensors(folder).values():
        np.asarray(x)


def _judge(folder: Path) -> None:
    shutil.copytree(parts.PACKAGED / "judge", folder, dirs_exist_ok=True)


def _use_judge(folder: Path) -> None:
    assert isinstance(read_judge(folder)[0], JudgeConfig)


def _opens2v(folder: Path) -> None:
    Image.fromarray(_PIXELS).save(folder / "i.png")
    (folder / "list.json").write_text(json.dumps({"a_1": {"prompt": "p", "img_paths": ["i.png"]}}))
    (folder / "scores").mkdir()
    for name, field, *_ in opens2v.SCORES.values():
        (folder / "scores" / f"{name}.json").write_text(json.dumps({"a_1": {field: 0.5}}))
    for name in opens2v.NATURAL:
        (folder / "scores" / f"{name}.json").write_text(json.dumps({"a_1": "4"}))


def _use_opens2v(folder: Path) -> None:
    opens2v.read_samples(folder / "list.json")
    opens2v.merge(folder / "scores", "Open-Domain")


_NUMBERS = {"a": 1, "b": 2, "c": 3}


def _latents(folder: Path) -> None:
    encode(folder, _NUMBERS)


def _use_latents(folder: Path) -> None:
    made, _ = encode(folder, _NUMBERS)
    assert len(made.values) >= len(made.indices)


def _gallery(folder: Path) -> None:
    videos.claim(folder, {"suite": "x"}, {"a": "ab"})
    videos.Gallery(folder).write("a", [_PIXELS[..., :3]] * 2)


def _use_gallery(folder: Path) -> None:
    videos.Gallery(folder).read("a", 2, *_PIXELS.shape[:2])
    videos.claim(folder, {"suite": "x"}, {"a": "ab"})


def _cutouts(folder: Path) -> None:
    picture = np.zeros((40, 40, 4), np.uint8)
    picture[8:32, 8:32] = (200, 30, 30, 255)
    Image.fromarray(picture).save(folder / "dog.png")


def _use_cutouts(folder: Path) -> None:
    # They are read once, and this folder is another one each time.
    cutout._picture.cache_clear()
    find_cutouts(folder)


def _metrics(folder: Path) -> None:
    for name, save in (("clip", save_clip), ("dino", save_dino)):
        (folder / name).mkdir()
        save(folder / name)


def _use_metrics(folder: Path) -> None:
    picture = _PIXELS[..., :3].copy()
    for metric in (Clip(folder / "clip"), Dino(folder / "dino")):
        metric("cat", [Reference(picture, None, "a")], picture[None])


TARGETS = (
    Target("images", _images, _use_images, share=4),
    Target("clips", _clips, _use_clips, share=4),
    Target("manifest", _manifest, _use_manifest, ("manifest.jsonl",), share=2),
    Target("list of requests", _requests, _use_requests, ("requests.jsonl",)),
    Target("records", _records, _use_records, ("*array_record*", "*.json"), share=2),
    Target("notes of prepare", _records, _use_preparation, ("*.json", "shards/*.json")),
    Target("parts", _run, _use_parts, ("parts/*/*",), share=0.5),
    Target("config of a run", _run, _use_run_config, ("config.json",), share=0.5),
    Target("work folder", _work, _use_work, ("stages/*.json", "*.jsonl", "goodput.json"), share=2),
    Target("checkpoint", _checkpoint, _use_checkpoint, share=2),
    Target("checkpoint to go on from", _checkpoint, _restore, share=0.5),
    Target("stored part", _stored_part, _use_stored_part, share=0.5),
    Target("pipeline", _pipeline, _use_pipeline, ("**/*.json",), share=2),
    Target("published configs", _configs, _use_configs, share=0.5),
    Target("tokenizer", _tokenizer, _use_tokenizer),
    Target("SentencePiece", _pieces, lambda folder: _use_tokenizer(folder / "t5"), share=0.5),
    Target("safetensors", _tensors, _use_tensors),
    Target("judge", _judge, _use_judge, ("config.json",), share=0.25),
    Target("OpenS2V", _opens2v, _use_opens2v, ("**/*.json",)),
    Target("latents", _latents, _use_latents),
    Target("gallery", _gallery, _use_gallery),
    Target("cut-outs", _cutouts, _use_cutouts),
    Target("CLIP and DINO", _metrics, _use_metrics),
)
logging.set_verbosity(logging.ERROR)
# Of damaged pictures; libraries say on standard error what they make of them.
warnings.filterwarnings("ignore", module="PIL")
