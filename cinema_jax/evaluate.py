"""Measure a checkpoint on held-out identities:

    python -m cinema_jax.evaluate --checkpoint=runs/demo --suite=critters --json=out.json --output=runs/demo/evaluation

docs/evaluate.md says what each figure is. Stopped, the same command goes on with the videos it has.
"""

import time
from pathlib import Path

from absl import flags

from cinema_jax import command
from cinema_jax.diffusion.config import SOLVERS
from cinema_jax.errors import InputError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The --workdir of a finished training run, an import, or a folder (or hub repository) in the layout of diffusers.",
)
SUITE = flags.DEFINE_enum("suite", "critters", ["critters"], "Which prompts and references.")
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of the generated videos and the page that shows them; CHECKPOINT/evaluation if not given."
)
JSON = flags.DEFINE_string("json", None, "Where to write all figures; OUTPUT/figures.json if not given.")
CASES = flags.DEFINE_integer("cases", None, "Prompts of each number of subjects, if not all.", lower_bound=2)
BATCH = flags.DEFINE_integer("batch_size", 8, "Videos sampled at once.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Sampler steps; the run's own number if not given.", lower_bound=1)
SOLVER = flags.DEFINE_enum("solver", None, SOLVERS, "How the noise is taken away; the run's own if not given.")
GUIDANCE_TEXT = flags.DEFINE_float("guidance_text", None, "Guidance towards the prompt; 1 means none.")
GUIDANCE_REFERENCE = flags.DEFINE_float("guidance_reference", None, "Guidance towards the references; 1 means none.")
CACHE = command.compilation_cache_flag("~/.cache/cinema_jax")


def main() -> None:
    """Generate what is missing, judge everything, and write the report."""
    from cinema_jax import compilation, parts
    from cinema_jax.evaluation import benchmark, report, videos
    from cinema_jax.evaluation.judging import Eyes
    from cinema_jax.evaluation.suite import COUNTS, PER_COUNT, SEED, Suite
    from cinema_jax.exchange import hub
    from cinema_jax.sampling import sampler_of
    from cinema_jax.training.run import Run

    run = Run.load(hub.folder(CHECKPOINT.value))
    output = Path(OUTPUT.value) if OUTPUT.value else run.workdir / "evaluation"
    file = Path(JSON.value) if JSON.value else output / "figures.json"
    if run.config.condition.conditioner != "mllm" and not run.config.condition.entities:
        raise InputError(f"{run.workdir} reads no references, so there is no identity to measure")
    compilation.keep(CACHE.value, "~/.cache/cinema_jax")
    sampler = sampler_of(run)
    settings = sampler.settings(
        solver=SOLVER.value,
        steps=STEPS.value,
        guidance_text=GUIDANCE_TEXT.value,
        guidance_reference=GUIDANCE_REFERENCE.value,
    )
    suite = Suite(
        settings.frames,
        settings.height,
        settings.width,
        per_count=CASES.value or PER_COUNT,
        counts=tuple(count for count in COUNTS if count <= run.config.data.max_references),
    )
    eyes, digests = Eyes(), videos.digests(sampler)
    generated, seconds = videos.generate(sampler, settings, suite.cases, output, BATCH.value, digests)
    begun = time.monotonic()
    real = [suite.real(case) for case in suite.cases]
    kinds = {"generated": generated, "real": real, "reconstructed": videos.reconstruct(sampler, real, BATCH.value)}
    names = benchmark.read_names(eyes, suite)
    results = {kind: benchmark.judge(eyes, names, suite.cases, them, kind) for kind, them in kinds.items()}
    found = benchmark.figures(suite.cases, results)
    about = {
        "suite": SUITE.value,
        "suite_seed": SEED,
        "checkpoint": CHECKPOINT.value,
        "digests": digests | {"judge": eyes.digest},
        "settings": parts.read_json(output / "generation.json")["settings"],
        "seconds": {"generate": round(seconds, 1), "judge": round(time.monotonic() - begun, 1)},
    }
    text = report.table(found)
    title = f"{CHECKPOINT.value}: suite critters (seed {SEED}), {len(suite.cases)} prompts"
    page = report.write_page(output, text, suite.cases, results, real, title)
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    parts.write_json(file, report.as_json(found, suite.cases, results, about))
    print(f"{title}\n\n{text}\n\n{file}, {page}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    command.run(main)
