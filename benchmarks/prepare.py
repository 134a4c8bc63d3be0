"""How fast videos are prepared beside plain decoding, and how time and memory grow with their number:

    python benchmarks/prepare.py --video=bigbuckbunny.mp4

Clips of 9 frames at 8 frames/s and 64 x 64 pixels from random moments of one video, with the packaged VAE. Plain PyAV
seeks to the same places and converts the same frames, in as many threads. Each row is a process of its own.
"""

import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import jax
import numpy as np
from absl import app, flags
from etils import epath
from timing import seconds

from cinema_jax.cinema import Cinema
from cinema_jax.config import Config
from cinema_jax.data.folder import Folder
from cinema_jax.data.video import probe
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.publishing import Output
from cinema_jax.training.preparing import Preparation, make_encode

VIDEO = flags.DEFINE_string("video", None, "A video file.", required=True)
COUNT = flags.DEFINE_integer("count", None, "Prepare so many clips and print the measurements as JSON.")
COUNTS = (10, 100, 1000)
THREADS, BATCH, SHARD = 2, 8, 128
SIZE = {"frames": 9, "height": 64, "width": 64, "fps": 8.0, "max_references": 0}
MIB = 2**20


def plain(start: float) -> None:
    """Decodes and converts the frames of one clip."""
    with av.open(VIDEO.value) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(int(start / stream.time_base), stream=stream)
        taken = 0
        for frame in container.decode(stream):
            if frame.time >= start + taken / SIZE["fps"] - 1e-6:
                frame.to_ndarray(format="rgb24", width=SIZE["width"], height=SIZE["height"])
                taken += 1
            if taken == SIZE["frames"]:
                break


def make_folder(root: Path, starts: list[float]) -> Path:
    """A manifest of clips of the one video."""
    shutil.copy(VIDEO.value, root / "video.mp4")
    lines = [{"id": str(i), "video": "video.mp4", "start": x, "caption": f"clip {i}"} for i, x in enumerate(starts)]
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def peak() -> float:
    """Of this process's memory, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(count: int, folder: Path) -> dict[str, float]:
    """Seconds and MiB of preparing `count` clips, and of decoding them."""
    chance, latest = random.Random(0), probe(VIDEO.value).duration - SIZE["frames"] / SIZE["fps"] - 0.1
    starts = [round(chance.uniform(0.1, latest), 3) for _ in range(count)]
    source = Folder(make_folder(folder, starts), split="all", **SIZE)
    configs, params, _ = Run(Config(), folder).load_parts(["vae"])
    encode = make_encode(Cinema(Config(), configs), params)
    clips = np.zeros((BATCH, SIZE["frames"], SIZE["height"], SIZE["width"], 3), np.uint8)
    compiling = seconds(lambda: encode(clips))
    encoding = min(seconds(lambda: encode(clips)) for _ in range(3)) / BATCH * count
    key = {**SIZE, "shape": list(encode(clips).shape[1:])}
    work = Preparation(source, Output(epath.Path(folder / "records")), key, SHARD)

    def decode(some: list[float]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(plain, some))

    # Half of them before, half after: the machine may change its pace meanwhile.
    before, base = seconds(lambda: decode(starts[::2])), peak()
    preparing = seconds(lambda: work.run(encode, (0, 1), BATCH, THREADS))
    found = {"compiling": compiling, "encoding": encoding, "preparing": preparing, "base": base, "peak": peak()}
    size = sum(file.stat().st_size for file in (folder / "records").glob("videos-*")) / MIB
    return found | {"decoding": before + seconds(lambda: decode(starts[1::2])), "size": size}


def main(_) -> None:
    """Print the table, or one row's measurements."""
    if COUNT.value:
        with tempfile.TemporaryDirectory() as folder:
            return print(json.dumps(measure(COUNT.value, Path(folder))))
    print(f"{jax.devices()[0].device_kind}, {THREADS} threads\n")
    print("| clips | plain PyAV | the VAE alone | prepare | over PyAV | over both in turn | clips/s | peak | records |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in COUNTS:
        command = [sys.executable, __file__, f"--video={VIDEO.value}", f"--count={count}"]
        x = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        both = x["preparing"] / (x["decoding"] + x["encoding"])
        print(
            f"| {count} | {x['decoding']:.2f} s | {x['encoding']:.2f} s | {x['preparing']:.2f} s "
            f"| {x['preparing'] / x['decoding']:.2f} | {both:.2f} | {count / x['preparing']:.1f} "
            f"| {x['peak']:.0f} MiB ({x['peak'] - x['base']:+.0f}) | {x['size']:.1f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
