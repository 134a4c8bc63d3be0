"""Training by its own command: all stages, a run that is killed and goes on, and a run whose weights are wanted."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.record import Record

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Seconds that are kept for what follows a training: reading its lines, or writing its weights.
AFTER, WRITING = 10.0, 60.0
PIECE = "15M"


def environment(cache: Path | None = None, flags: str = "") -> dict[str, str]:
    """That of a training. With one `cache` for several all have the same programs: XLA tries kernels as it compiles,
    and takes the fastest, which may be another one the next time and round differently."""
    # One space alone would be the name of a file of flags.
    found = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    if cache is None:
        return found
    # Small programs too.
    return found | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@contextlib.contextmanager
def training(config: str, workdir: Path, *arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen]:
    """The command, whose output goes to WORKDIR.log; killed if it still runs at the end."""
    command = [sys.executable, "-m", "cinema_jax.train", f"--config={config}", f"--workdir={workdir}", *arguments]
    with workdir.with_name(f"{workdir.name}.log").open("ab") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finish(process: subprocess.Popen, seconds: float) -> int | str:
    """Its exit status, or that its time is over; it has then been told to stop, and has saved what it has."""
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return f"stopped, {process.wait(timeout=WRITING / 2)}"
    except subprocess.TimeoutExpired:
        return "killed"


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The metrics so far; a last line that is not whole is none."""
    file, found = workdir / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def log_of(workdir: Path) -> str:
    """The end of what it said."""
    return workdir.with_name(f"{workdir.name}.log").read_text(errors="replace")[-600:]


def small(record: Record) -> tuple[str, ...]:
    """In bf16 on a card, where attention is fused."""
    return () if record.options.tiny else ("--config.precision=bfloat16",)


def smoke(record: Record) -> None:
    """Every stage of configs/demo.py:smoke; of a toy the first alone."""
    arguments = ("--config.stages=('vae',)",) if record.options.tiny else ()
    with tempfile.TemporaryDirectory() as folder:
        workdir, began = Path(folder, "run"), time.monotonic()
        with training("configs/demo.py:smoke", workdir, *small(record), *arguments, env=environment()) as process:
            status = finish(process, record.options.seconds - AFTER)
        seconds, rows = time.monotonic() - began, lines(workdir)
        for stage in dict.fromkeys(row["stage"] for row in rows):
            losses = [row["loss"] for row in rows if row["stage"] == stage and "loss" in row]
            finished = (workdir / "stages" / f"{stage}.json").exists()
            # A loss that is not finite is written as null.
            finite = bool(losses) and None not in losses
            record(stage, finished=finished, finite=finite, losses=losses)
        record("all", status=status, seconds=seconds, said="" if status == 0 else log_of(workdir))


def resume(record: Record) -> None:
    """Finetuning the packaged demo, left alone and killed after its third step; where they differ, again with XLA's
    deterministic kernels."""
    began = time.monotonic()
    for flags in ("", DETERMINISTIC):
        with tempfile.TemporaryDirectory() as folder:
            left = record.options.seconds - AFTER - (time.monotonic() - began)
            found = _killed_and_whole(record, Path(folder), flags, left)
        record("kill and resume", flags=flags, **found)
        # What is the same needs no flag, and what did not run tells nothing.
        if found.get("different") is None or not found["different"]:
            return


def _killed_and_whole(record: Record, folder: Path, flags: str, seconds: float) -> dict[str, Any]:
    steps = 4 if record.options.tiny else 8
    arguments = ["--config.stages=('finetune',)", "--config.init=packaged", "--config.data.train_videos=16"]
    arguments += ["--config.data.validation_videos=8", "--config.evaluate_identities=2", *small(record)]
    section = {"steps": steps, "batch_size": 4, "microbatches": 1, "checkpoint_every": 2, "log_every": 1}
    arguments += [f"--config.finetune.{name}={value}" for name, value in {**section, "sample_every": 0}.items()]
    env, end, found = environment(folder / "cache", flags), time.monotonic() + seconds, {}
    with training("configs/demo.py", folder / "whole", *arguments, env=env) as process:
        found["whole"] = finish(process, end - time.monotonic())
    with training("configs/demo.py", folder / "killed", *arguments, env=env) as process:
        while process.poll() is None and time.monotonic() < end and _step(folder / "killed") < 3:
            time.sleep(0.02)
    found["killed_after_step"] = _step(folder / "killed")
    with training("configs/demo.py", folder / "killed", *arguments, env=env) as process:
        found["killed"] = finish(process, end - time.monotonic())
    if found["whole"] != 0 or found["killed"] != 0:
        return found | {"said": log_of(folder / ("whole" if found["whole"] != 0 else "killed"))}
    different, count = differences(*(folder / name / "checkpoints" / "finetune" for name in ("whole", "killed")))
    return found | {"arrays": count, "different": len(different), "which": dict(list(different.items())[:20])}


def _step(workdir: Path) -> int:
    return max((row["step"] for row in lines(workdir)), default=0)


def differences(whole: Path, killed: Path) -> tuple[dict[str, float], int]:
    """The arrays of the last states that are not the same to the bit, with their largest difference; and how many there
    are in all."""
    import jax
    from orbax.checkpoint import v1 as ocp

    from cinema_jax.experiment.checkpoint import step_path

    states = [ocp.load_checkpointables(step_path(folder))["state"] for folder in (whole, killed)]
    found, (first, second) = {}, (jax.tree_util.tree_leaves_with_path(state) for state in states)
    for (path, a), (_, b) in zip(first, second, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if not np.array_equal(a, b):
            found[jax.tree_util.keystr(path)] = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return found, len(first)


def demo(record: Record) -> None:
    """`--config` for as long as there is time, and the weights that the run then stands for, in pieces."""
    options = record.options
    with tempfile.TemporaryDirectory() as folder:
        workdir, began = Path(folder, "run"), time.monotonic()
        with training(options.config, workdir, *shlex.split(options.train), env=environment()) as process:
            status = finish(process, max(1.0, options.seconds - WRITING))
        record("train", config=options.config, status=status, seconds=time.monotonic() - began, said=log_of(workdir))
        for name in ("metrics.jsonl", "config.json"):
            if (workdir / name).exists():
                shutil.copy(workdir / name, options.out)
        if (sheet := workdir / "samples" / "contact_sheet.png").exists():
            shutil.copy(sheet, options.out)
        record.attempt("weights", lambda: _write_weights(workdir, options.out / "weights"))


def _write_weights(workdir: Path, output: Path) -> dict[str, Any]:
    """The parts that were trained, in 16 bits; `cat FILE.* > FILE` puts one together again."""
    from cinema_jax.experiment import parts
    from cinema_jax.experiment.run import Run
    from cinema_jax.experiment.standing import stands_for

    run = Run.load(workdir)
    standing, written = stands_for(run), {}
    own = [name for name in parts.KINDS if name in standing.begun or (workdir / "parts" / name).is_dir()]
    for name in own:
        parts.write(name, run.part_config(name), standing.params(name), output / name, np.float16)
        for file in sorted((output / name).glob("*.safetensors")):
            subprocess.run(["split", "-b", PIECE, "-d", file, f"{file}."], check=True)
            written[f"{name}/{file.name}"] = file.stat().st_size
            file.unlink()
    return {"of": str(standing), "bytes": written}
