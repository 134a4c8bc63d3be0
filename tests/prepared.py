"""A folder of clips with a manifest, and the work of preparing it with a stand-in for the VAE.

As a program, prepares it and kills itself (SIGKILL) in the middle of a shard: python prepared.py FOLDER OUTPUT SHARD
"""

import json
import os
import signal
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from clips import write_clip, write_images
from etils import epath
from ml_collections import ConfigDict
from PIL import Image
from tiny import tiny_values

from cinema_jax.data.folder import Folder
from cinema_jax.inputs.publishing import Output
from cinema_jax.training.preparing import Preparation

VIDEOS, BATCH_SIZE, SHARD_SIZE = 7, 2, 3
SIZE = {"frames": 5, "height": 32, "width": 32, "fps": 8.0, "max_references": 3}
SHAPE = [2, 4, 4, 3]


def make_folder(root: Path) -> Path:
    """Seven clips; their references: an image with a mask, a second view of that subject, a box of a frame."""
    root.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(root / "a.png")
    Image.fromarray(rng.integers(0, 255, (10, 14, 3), dtype=np.uint8)).save(root / "b.png")
    mask = np.zeros((12, 10), np.uint8)
    mask[3:9, 2:8] = 200
    Image.fromarray(mask).save(root / "mask.png")
    write_clip(root / "other.mp4", frames=6)
    references = [
        {"image": "a.png", "mask": "mask.png", "subject": "one", "noun": "bärchen"},
        {"image": "b.png", "subject": "one", "same_clip": True},
        {"video": "other.mp4", "frame": 3, "box": [5, 6, 30, 28], "subject": "two"},
    ]
    lines = []
    for i in range(VIDEOS):
        noise = [rng.integers(0, 255, (4, 6, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(12)]
        write_images(root / f"{i}.mp4", noise, 8)
        line = {"video": f"{i}.mp4", "caption": f"long {i}", "start": 0.2 * (i % 2)}
        line["references"] = references[: (0, 1, 2, 3, 0, 3, 2)[i]]
        # The third names its subjects.
        lines.append(line | ({"prompt": "two and the bärchen" if i == 3 else f"short {i}"} if i % 2 else {}))
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def values(path: Path, source: str = "folder") -> ConfigDict:
    """The tiny config, with the packaged networks, on that folder or on its records."""
    result = tiny_values()
    result.stages = ("finetune",)
    result.data.source, result.data.path = source, str(path)
    result.data.validation_fraction, result.data.train_videos, result.data.validation_videos = 0.5, 0, 0
    for part in ("vae", "t5", "mllm", "tokenizer", "t5_tokenizer"):
        result.weights[part] = "packaged"
    return result


def preparation(folder: Path, output: Path | str, *, retry_rejected: bool = False, **key) -> Preparation:
    """What `cinema_jax.prepare` would do with the folder; `key` changes what its records depend on."""
    source = Folder(folder, split="all", **SIZE)
    key = {**SIZE, "shape": SHAPE, "vae": "a stand-in", **key}
    return Preparation(source, Output(epath.Path(output)), key, SHARD_SIZE, retry_rejected)


def encode(clips: np.ndarray) -> np.ndarray:
    """Every eighth pixel of two frames, in place of latents."""
    return clips[:, :2, ::8, ::8].astype(ml_dtypes.bfloat16)


def run(folder: Path, output: Path | str, process: tuple[int, int] = (0, 1), encode=encode, **options) -> bool:
    """Prepare the folder with the stand-in."""
    return preparation(folder, output, **options).run(encode, process, BATCH_SIZE, 2)


def files(output: Path) -> dict[str, bytes]:
    """What a prepared folder holds, locks aside."""
    found = [file for file in output.rglob("*") if file.is_file() and file.parent.name != "locks"]
    return {str(file.relative_to(output)): file.read_bytes() for file in found}


def main(folder: str, output: str, shard: str) -> None:
    """Prepare, and die after the first batch of a shard is written."""
    write = Preparation._write

    def dying(batches):
        yield next(batches)
        os.kill(os.getpid(), signal.SIGKILL)

    Preparation._write = lambda self, i, batches: write(self, i, dying(batches) if i == int(shard) else batches)
    run(Path(folder), output)


if __name__ == "__main__":
    main(*sys.argv[1:])
