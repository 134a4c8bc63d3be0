"""What each part of the method is good for, from evaluated runs of `configs/demo_ablation.py`:

    python benchmarks/ablations.py --runs=runs/ablations

reads RUNS/<variant>_<seed>/evaluation/figures.json and prints a Markdown table of each variant's figures over all its
seeds. Below each figure stands its difference to `full`, with a 95 % interval by resampling cases: the same case of
the same seed is compared with itself, so what is hard about a case does not count.
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from absl import app, flags

RUNS = flags.DEFINE_string("runs", "runs/ablations", "The folder of the runs.")
BASE = flags.DEFINE_string("base", "full", "The variant that others are compared with.")
RESAMPLES = 5000
# Columns: title, figure, and which cases it is about.
COLUMNS = (
    ("identity, 1", "identity", lambda case: len(case["subjects"]) == 1),
    ("2", "identity", lambda case: len(case["subjects"]) == 2),
    ("3", "identity", lambda case: len(case["subjects"]) == 3),
    ("precise", "identity", lambda case: not case["vague"]),
    ("vague", "identity", lambda case: case["vague"]),
    ("pairwise", "pairwise", lambda case: True),
    ("binding, 2", "binding", lambda case: len(case["subjects"]) == 2),
    ("binding, vague", "binding", lambda case: case["vague"]),
    ("action", "action", lambda case: True),
)


def read(folder: Path) -> dict[str, dict[str, list[dict]]]:
    """{variant: {seed: cases}}."""
    found: dict[str, dict[str, list[dict]]] = defaultdict(dict)
    for file in sorted(folder.glob("*_*/evaluation/figures.json")):
        variant, seed = file.parts[-3].rsplit("_", 1)
        found[variant][seed] = json.loads(file.read_text())["cases"]
    return found


def sums(runs: dict[str, list[dict]], seeds: list[str], figure: str, holds) -> np.ndarray:
    """[cases, seeds, 2]: what each case adds up to, and how many it counts."""
    return np.array(
        [[run["sums"]["generated"][figure] for run in per_seed if holds(run)]
         for per_seed in (runs[seed] for seed in seeds)], np.float64,
    ).swapaxes(0, 1)  # fmt: skip


def mean(chosen: np.ndarray) -> np.ndarray:
    """Over the last axis but two and the seeds: share of what was counted."""
    total = chosen.sum(axis=(-3, -2))
    return total[..., 0] / total[..., 1]


def cell(own: np.ndarray, base: np.ndarray | None) -> str:
    """The figure in per cent, and how far it is from the base's."""
    text = f"{100 * mean(own):.1f}"
    if base is None:
        return text
    rows = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    low, high = np.quantile(100 * (mean(own[rows]) - mean(base[rows])), [0.025, 0.975])
    return f"{text}<br>{100 * (mean(own) - mean(base)):+.1f} [{low:+.1f}, {high:+.1f}]"


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    found = read(Path(RUNS.value))
    if BASE.value not in found:
        raise app.UsageError(
            f"{RUNS.value} holds no evaluated run of {BASE.value}; it has {', '.join(found) or 'none'}"
        )
    print(f"| variant (seeds) | {' | '.join(title for title, *_ in COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for variant in sorted(found, key=lambda name: name != BASE.value):
        seeds = sorted(found[variant].keys() & found[BASE.value].keys())
        cells = []
        for _, figure, holds in COLUMNS:
            own, base = (sums(found[name], seeds, figure, holds) for name in (variant, BASE.value))
            cells.append(cell(own, None if variant == BASE.value else base))
        print(f"| {variant} ({len(seeds)}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    app.run(main)
