"""How the demo's AlignerNet learns from each start and with each loss: `python benchmarks/align_start.py`.

From the packaged transformer, `align` alone, by default 200 steps as in configs/demo.py; the same seeds for all.
Prints a table of the held-out measurements at step 0, in the middle and at the end.
"""

import argparse
import json
import tempfile
from pathlib import Path

from cinema_jax.config import parse
from cinema_jax.training import loop
from cinema_jax.training.run import Run
from configs import demo

# The start of the output norm's scale, and whether caption and padding have half of the loss each.
VARIANTS = {"1, all alike": (False, False), "T5's, all alike": (True, False), "T5's, halves": (True, True)}
SHOWN = ("mse", "cosine_real", "cosine_padding", "flow_ratio", "flow_gate")


def main() -> None:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--videos", type=int, default=32, help="held-out videos")
    arguments = parser.parse_args()
    start = loop.at_t5s_scale
    print(f"| start, loss | seed | step | {' | '.join(SHOWN)} |\n|{'---|' * (3 + len(SHOWN))}")
    for seed in range(arguments.seeds):
        for name, (scaled, balanced) in VARIANTS.items():
            loop.at_t5s_scale = start if scaled else lambda stage, params, *_: params
            for line in evaluations(seed, balanced, arguments.steps, arguments.videos):
                told = " | ".join(f"{line[f'eval_{x}']:.4f}" for x in SHOWN)
                print(f"| {name} | {seed} | {line['step']} | {told} |", flush=True)


def evaluations(seed: int, balanced: bool, steps: int, videos: int) -> list[dict]:
    """What one run measures."""
    values = demo.get_config()
    values.stages, values.seed, values.data.validation_videos = ("align",), seed, videos
    align = values.align
    align.steps, align.sample_every, align.eval_every = steps, 0, steps // 2
    align.balanced, align.checkpoint_every = balanced, steps
    with tempfile.TemporaryDirectory() as folder:
        loop.train(Run.open(parse(values), Path(folder)))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line]


if __name__ == "__main__":
    main()
