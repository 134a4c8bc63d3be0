"""Weights of CogVideoX-2b's real size from safetensors onto 8 virtual devices, and back:

    python benchmarks/streaming.py --workdir=/dev/shm/streaming

A folder in memory keeps the disk, whose own speed differs tenfold from one minute to the next, out of the comparison.

Makes a checkpoint of random numbers (bf16, two files), then measures each work in processes of its own, in turn with
what safetensors itself does: time with the files in the page cache, and the peak of anonymous memory (`RssAnon`; mapped
files are not in it) beside the size of the weights. Orbax's write of the same arrays is reported beside them.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

DEVICES, ROUNDS = 8, 5
# As the commands of this project do, for safetensors' own work as well.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402
from orbax.checkpoint import v1 as ocp  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from cinema_jax.devices import sharding  # noqa: E402
from cinema_jax.experiment import parts  # noqa: E402
from cinema_jax.models.cogvideox.config import CogVideoXConfig  # noqa: E402
from cinema_jax.weights import shards  # noqa: E402

FOLDER = flags.DEFINE_string("workdir", None, "Where the files go, 7 GB of them.", required=True)
WORK = flags.DEFINE_string("work", None, "Do one work and print what it took (the script calls itself).")

CONFIG = CogVideoXConfig(num_layers=30, num_attention_heads=30)
SHARD = "2GB"


def make(folder: Path) -> None:
    """A checkpoint of random numbers in the published layout, in two files."""
    rng = np.random.default_rng(0)
    pool = (0.02 * rng.standard_normal(1 << 24, dtype=np.float32)).astype(ml_dtypes.bfloat16)
    _, abstract = parts.structure("dit", CONFIG)
    zeros = {path: np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), x.shape) for path, x in abstract.items()}
    tensors = parts.published("dit", CONFIG, zeros)
    files = shards.plan(parts.DIFFUSERS, tensors, SHARD)
    folder.mkdir(parents=True)
    for file, names in files.items():
        save_file(
            {name: np.resize(np.roll(pool, i), tensors[name].shape) for i, name in enumerate(names)}, folder / file
        )
    (folder / f"{parts.DIFFUSERS}.safetensors.index.json").write_text(json.dumps(shards.index(files, tensors)))


class Memory(threading.Thread):
    """Watches this process's anonymous memory, in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.start_bytes = self.peak = self.now()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, self.now())
            time.sleep(0.01)

    @staticmethod
    def now() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])


def load(folder: Path) -> dict[str, jax.Array]:
    """Ours: every device reads its slices."""
    mesh = sharding.make_mesh(data=1, fsdp=DEVICES)
    return jax.block_until_ready(sharding.place(parts.read("dit", CONFIG, folder), mesh))


def load_plainly(folder: Path) -> dict[str, np.ndarray]:
    """Safetensors' own loader and a copy of each tensor, which is all that a device would need on a CPU."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        loaded = load_file(file)
        for name in list(loaded):
            tensors[name] = loaded.pop(name).copy()
    return tensors


def export(params: dict[str, jax.Array], output: Path) -> None:
    """Ours: tensor by tensor."""
    tensors = parts.published("dit", CONFIG, params)
    for file, names in shards.plan(parts.DIFFUSERS, tensors, SHARD).items():
        shards.write_tensors(output / file, {name: tensors[name] for name in names})


def export_plainly(tensors: dict[str, np.ndarray], output: Path) -> None:
    """Safetensors' own writer."""
    for file, names in shards.plan(parts.DIFFUSERS, tensors, SHARD).items():
        save_file({name: tensors[name] for name in names}, output / file)


def save_orbax(params: dict[str, jax.Array], output: Path) -> None:
    """Orbax's write of the arrays."""
    ocp.save_checkpointables(output / "orbax", {"params": params})


# Name: what is made beforehand of the folder, and the work itself.
WORKS: dict[str, tuple[Callable, Callable]] = {
    "load": (lambda folder: folder, lambda folder, output: load(folder)),
    "load_file + copy": (lambda folder: folder, lambda folder, output: load_plainly(folder)),
    "export": (load, export),
    "save_file": (load_plainly, export_plainly),
    "Orbax": (load, save_orbax),
}


def touch_pages(file: Path, size: int) -> None:
    """Write and remove a file: a virtual machine's first touch of a page costs more than all else, in any work."""
    block = bytes(1 << 26)
    with file.open("wb") as stream:
        for _ in range(-(-size // len(block))):
            stream.write(block)
    file.unlink()


def do(work: str, folder: Path) -> None:
    """One work, in this process alone."""
    output = folder.parent / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    prepare, function = WORKS[work]
    jax.devices()
    memory = Memory()
    memory.start()
    prepared = prepare(folder)
    function(prepared, output)
    shutil.rmtree(output)
    output.mkdir()
    touch_pages(output / "pages", sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    start = time.perf_counter()
    result = function(prepared, output)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "anonymous": memory.peak - memory.start_bytes}))
    del result
    shutil.rmtree(output)


def main(_) -> None:
    """Print the table."""
    folder = Path(FOLDER.value) / "checkpoint"
    if WORK.value:
        return do(WORK.value, folder)
    if not folder.exists():
        make(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{size / 1e9:.2f} GB in {len(list(folder.glob('*.safetensors')))} files, {DEVICES} devices")
    found: dict[str, list[dict]] = {work: [] for work in WORKS}
    for _ in range(ROUNDS):
        for work in WORKS:
            command = [sys.executable, __file__, f"--workdir={FOLDER.value}", f"--work={work}"]
            output = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
            found[work].append(json.loads(output.splitlines()[-1]))
    print("| work | fastest | beside safetensors | median | beside safetensors | anonymous memory beside the weights |")
    print("|---|---|---|---|---|---|")
    for work, runs in found.items():
        base = found["load_file + copy" if work.startswith("load") else "save_file"]
        columns = []
        for statistic in (min, statistics.median):
            own, other = (statistic(run["seconds"] for run in x) for x in (runs, base))
            columns += [f"{own:.2f} s", f"{own / other:.2f}"]
        memory = max(run["anonymous"] for run in runs) / size
        print(f"| {work} | {' | '.join(columns)} | {memory:.2f} |")


if __name__ == "__main__":
    app.run(main)
