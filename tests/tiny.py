"""A whole configuration at the smallest sizes that still have every part."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cinema_jax.config import Config, parse
from cinema_jax.experiment import parts
from cinema_jax.experiment.run import Run
from configs import demo

# The parts that a run may draw, and so has.
DRAWN = tuple(name for name in parts.KINDS if name not in parts.NEVER_DRAWN)


def tiny_values() -> ConfigDict:
    """The demo's smoke variant, smaller."""
    values = demo.get_config("smoke")
    values.data.frames, values.data.height, values.data.width = 5, 32, 32
    values.data.reference_height = values.data.reference_width = 32
    values.data.train_videos = values.data.validation_videos = 4
    values.condition.mllm_max_pixels = values.condition.mllm_min_pixels = 32 * 32
    values.condition.mllm_patches = 48
    values.vae_model.base_dim, values.vae_model.decoder_base_dim = 4, 4
    values.vae_model.dim_mult = (1, 1, 1, 2)
    values.vae_model.z_dim, values.vae_model.latents_mean, values.vae_model.latents_std = 4, (0.0,) * 4, (1.0,) * 4
    values.t5_model.d_model, values.t5_model.d_ff, values.t5_model.num_layers = 32, 32, 1
    values.mllm_model.vision.depth, values.mllm_model.vision.embed_dim = 1, 32
    values.mllm_model.hidden_size, values.mllm_model.intermediate_size, values.mllm_model.num_hidden_layers = 48, 32, 1
    values.mllm_model.mrope_section = (1, 1, 2)
    values.aligner_model.num_layers, values.aligner_model.width, values.aligner_model.num_heads = 1, 32, 2
    values.dit_model.num_layers, values.dit_model.num_attention_heads, values.dit_model.attention_head_dim = 1, 2, 16
    values.dit_model.time_embed_dim = 16
    values.evaluate_identities = 2
    for stage in values.stages:
        section = getattr(values, stage)
        section.steps, section.batch_size, section.checkpoint_every = 2, 2, 1
    for stage in (values.vae, values.mllm):
        stage.image_steps, stage.image_batch_size = 1, 2
    return values


def tiny_config() -> Config:
    """The same, parsed."""
    return parse(tiny_values())


def random_run(workdir: Path, config: Config | None = None) -> Path:
    """A finished run as far as commands that sample can tell: every part, untrained; by default the tiny one."""
    run = Run.open(config or tiny_config(), workdir)
    for name in DRAWN:
        config = run.part_config(name)
        parts.write(name, config, random_params(name, config), workdir / "parts" / name)
    return workdir


def random_params(part: str, config: Any) -> dict[str, np.ndarray]:
    """A part at random weights, none of them at the zeros or ones that networks start from: an untrained transformer
    says velocity 0, whatever it is told. Nothing is compiled to draw them."""
    rng, params = np.random.default_rng(0), {}
    for path, leaf in parts.structure(part, config)[1].items():
        x = rng.standard_normal(leaf.shape, np.float32)
        if path.endswith("kernel"):
            params[path] = x / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        elif "embedding" in path:
            params[path] = x
        else:
            params[path] = np.float32(0.05) * x + np.float32(path.endswith("scale"))
    return params


# Before all else on a process's path.
WITHOUT_TORCH = str(Path(__file__).with_name("without_torch"))


def process_environment(devices: int = 0) -> dict[str, str]:
    """For a process of its own that imports what this one can but PyTorch; with so many devices of a CPU, if they are
    named."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([WITHOUT_TORCH, *sys.path])}
    if devices:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return environment


def run_together(command: Sequence[Any], count: int = 2, seconds: float = 600) -> list[tuple[int, str, str]]:
    """Exit status, output and messages of so many processes of one run, each with this command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        joined = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={count}"]
    started = [
        subprocess.Popen(
            [sys.executable, *command, *joined, f"--process_id={i}"],
            env=process_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    told = [process.communicate(timeout=seconds) for process in started]
    return [(process.returncode, *said) for process, said in zip(started, told, strict=True)]


# For processes that compile for TPUs which are not there. libtpu refuses flags of CPUs.
TPU_ENVIRONMENT = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@contextlib.contextmanager
def environment_of_tpus() -> Iterator[None]:
    """In this process for TPUs that are not there: libtpu reads it when it is first asked for something."""
    before = dict(os.environ)
    os.environ.update(TPU_ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)
