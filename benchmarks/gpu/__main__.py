"""Prove and measure cinema_jax on one NVIDIA card, in bf16, with random weights and without network:

    python -m benchmarks.gpu --out=results --sections=correct,measured

Sections, and their parts in the order in which they run (`--parts` names some of them):

    correct   attention  backends in 16 bits against XLA in fp32, forward and gradient
              models     a small network of every family on the card and on the CPU, same parameters and inputs
              resume     a run that is killed and goes on ends like one that was left alone, to the bit
              smoke      every stage of configs/demo.py:smoke
    measured  matmul     what the card multiplies at best: the ceiling of the shares below
              2b, 5b, wan            a transformer at 49 x 480 x 720: forward, forward and backward
              2b_diffusers, ...      diffusers' of the same shape: SDPA, and compiled
              vae, vae_diffusers     CogVideoX' VAE decodes 49 x 480 x 720, whole and in tiles
              guided, step           a guided step of sampling and a train step of configs/cogvideox_2b.py
    demo      demo       trains `--config` for `--seconds`, and leaves the weights in pieces of 15 MiB

Every part is a process of its own with a limit of its own. Every result is one line of JSON in OUT/gpu.jsonl, written
at once: who kills this loses nothing but the part under way. `--tiny` runs the same code at toy size, on a CPU too.
benchmarks/gpu_wheels.sh gathers the packages that a machine with jax and torch alone lacks.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.record import Options, Record, card


class Part(NamedTuple):
    """A function of `Record`, which runs at most so many seconds."""

    section: str
    function: str
    seconds: float


PARTS = {
    "attention": Part("correct", "attention.compare", 40),
    "models": Part("correct", "families.compare", 60),
    "resume": Part("correct", "runs.resume", 150),
    "smoke": Part("correct", "runs.smoke", 240),
    "matmul": Part("measured", "ceiling.matmul", 30),
    "2b": Part("measured", "ours.transformer", 75),
    "2b_diffusers": Part("measured", "originals.transformer", 90),
    "5b": Part("measured", "ours.transformer", 90),
    "5b_diffusers": Part("measured", "originals.transformer", 120),
    "vae": Part("measured", "ours.vae", 60),
    "vae_diffusers": Part("measured", "originals.vae", 40),
    "guided": Part("measured", "ours.guided", 75),
    "step": Part("measured", "ours.step", 75),
    "wan": Part("measured", "ours.transformer", 75),
    "wan_diffusers": Part("measured", "originals.transformer", 90),
    "demo": Part("demo", "runs.demo", 0),
}
# Modules that compute with PyTorch, or start trainings: the card is not theirs to hold.
ELSEWHERE = ("originals", "runs")
# In the place of PyAV, whose wheel is larger than all others together.
WITHOUT_AV = Path(__file__).with_name("without_av")
SECTIONS = ("correct", "measured", "demo")


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; lines are appended")
    parser.add_argument("--sections", default="correct,measured", help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--parts", default="", help=f"these alone, in their own order: {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=600, help="for all together; what does not fit is left out")
    parser.add_argument("--layers", default="2,0", help="depths of the transformers, 0: that of the real one")
    parser.add_argument("--config", default="configs/demo.py", help="what the demo section trains")
    parser.add_argument("--train", default="", help="further arguments of that training")
    parser.add_argument("--tiny", action="store_true", help="toy size, to try the code without a card")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--card", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.sections, given.parts = (list(filter(None, x.split(","))) for x in (given.sections, given.parts))
    for name, known in ((given.sections, SECTIONS), (given.parts, PARTS)):
        if unknown := [x for x in name if x not in known]:
            parser.error(f"{unknown[0]!r} is unknown; accepted: {', '.join(known)}")
    return given


def environment(part: str, tiny: bool) -> dict[str, str]:
    """JAX and PyTorch each have the card to themselves, and take memory as they need it."""
    changes = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONUNBUFFERED": "1",
    }
    if PARTS[part].function.startswith("runs.") and not tiny:
        # Without a card they end in an error, and not in a training that takes hours.
        changes["JAX_PLATFORMS"] = "cuda,cpu"
    if part.endswith("_diffusers"):
        # Shapes and products are counted by JAX there too, which must leave the card alone.
        changes |= {"JAX_PLATFORMS": "cpu", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if importlib.util.find_spec("av") is None:
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(WITHOUT_AV))))
    if tiny:
        # Nobody wants its speed, and CPUs compile slowly.
        changes |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return os.environ | changes


def run(part: str, given: argparse.Namespace, seconds: float) -> None:
    """One part in a process group of its own, which ends with its time; says how it ended."""
    record = Record(part, Options.of(given, seconds), given.card, device=False)
    call = [sys.executable, "-m", "benchmarks.gpu", f"--part={part}", f"--out={given.out}", f"--seconds={seconds:.0f}"]
    call += [f"--layers={given.layers}", f"--config={given.config}", f"--train={given.train}", f"--card={given.card}"]
    began = time.monotonic()
    process = subprocess.Popen(
        call + ["--tiny"] * given.tiny, env=environment(part, given.tiny), start_new_session=True
    )
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        status = "out of time"
    finally:
        # Also where this process is interrupted, and a training that outlived the part; most groups have ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    record("end", status=status, limit=seconds, seconds=time.monotonic() - began)


def main() -> None:
    """The parts asked for, one after the other; with `--part`, that one in this process."""
    given = arguments()
    if given.part:
        module, function = PARTS[given.part].function.split(".")
        record = Record(given.part, Options.of(given, given.seconds), given.card, device=module not in ELSEWHERE)
        return getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(record)
    given.out.mkdir(parents=True, exist_ok=True)
    given.card, began = card(), time.monotonic()
    for name, part in PARTS.items():
        if name not in given.parts if given.parts else part.section not in given.sections:
            continue
        left = given.seconds - (time.monotonic() - began)
        # The demo takes all that is left; a CPU may be slow, and busy.
        limit = min(left, part.seconds * (10 if given.tiny else 1) or left)
        if left < 10:
            Record(name, Options.of(given, 0), given.card, device=False)("left out", seconds_left=left)
        else:
            run(name, given, limit)


if __name__ == "__main__":
    main()
