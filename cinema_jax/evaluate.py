"""Measure a checkpoint on held-out subjects, or on the held-out clips of your own videos.

docs/evaluate.md defines every figure. The same command continues where it stopped, and processes share the videos.
"""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags

from cinema_jax.commands import command
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.inputs.places import check_folder, check_place
from cinema_jax.sampling import options

flags.adopt_module_key_flags(options)
SUITE = flags.DEFINE_enum(
    "suite",
    None,
    ["critters", "opens2v", "own"],
    "Prompts and references; own: the held-out clips of a run on a folder of videos. By default own for such a run, "
    "else critters.",
)
SUBJECTS = flags.DEFINE_string(
    "subjects",
    None,
    "For the suite critters: folder of cut-out PNGs to use in place of drawn critters (file stem = noun).",
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for the generated videos and the page that shows them; by default CHECKPOINT/evaluation, or evaluation "
    "for the packaged demo and for repositories of the hub.",
)
JSON = flags.DEFINE_string("json", None, "File for all figures; by default OUTPUT/figures.json.")
CASES = flags.DEFINE_integer("cases", None, "Prompts for each number of subjects; by default all.", lower_bound=2)
BATCH = flags.DEFINE_integer("batch_size", 8, "Videos sampled at once.", lower_bound=1)
CLIP = flags.DEFINE_string("clip", None, "Folder of a CLIP model as transformers saves it, for CLIP-T and CLIP-I.")
DINO = flags.DEFINE_string("dino", None, "Folder of a DINO model as transformers saves it, for DINO-I.")
SAMPLES = flags.DEFINE_string(
    "samples", None, "For the suite opens2v: its list, for example OpenS2V-Eval/Open-Domain_Eval.json."
)
SCORES = flags.DEFINE_string(
    "scores", None, "Merge the score files of OpenS2V-Eval's scripts in this folder, and do nothing else."
)
DOMAIN = flags.DEFINE_enum(
    "domain", "Open-Domain", ["Open-Domain", "Human-Domain", "Single-Domain"], "Domain of --scores."
)


def main() -> None:
    """Merge scores, or load the checkpoint and run the suite."""
    if SCORES.value:
        return _merge()
    if SUBJECTS.value and SUITE.value == "opens2v":
        raise InputError(
            f"--subjects={SUBJECTS.value} is for the suite critters only; --suite=opens2v has its own references"
        )
    asked = options.asked()
    _check_files()
    command.start_processes()
    pipeline = options.pipeline()
    run = pipeline.run
    if run.config.condition.conditioner != "mllm" and not run.config.condition.entities:
        raise InputError(f"{run.workdir} reads no references, so there is no identity to measure")
    folder = run.config.data.source == "folder"
    suite = SUITE.value or ("own" if folder else "critters")
    if suite == "own" and not folder:
        raise InputError(f"--suite=own is for a run on a folder of videos; {run.workdir} has none")
    settings = pipeline.checked([], **asked)
    output = Path(OUTPUT.value) if OUTPUT.value else _beside(run.workdir)
    check_folder(output)
    {"critters": _critters, "opens2v": _opens2v, "own": _own}[suite](pipeline, settings, output)
    # While the first one judges, which may take long: whoever leaves early would end it.
    distributed.meet("the report")


def _check_files() -> None:
    """Raises `InputError` for files and folders that are named and do not do, before anything is read."""
    for name, value in (("--clip", CLIP.value), ("--dino", DINO.value), ("--subjects", SUBJECTS.value)):
        if value and not Path(value).is_dir():
            raise InputError(f"{name}={value}: no such folder")
    if JSON.value:
        check_place(Path(JSON.value), Path(JSON.value).name)
        if Path(JSON.value).is_dir():
            raise InputError(f"--json={JSON.value} is a folder; name a file")


def _sampler(pipeline: Any, requests: Iterable[Any], settings: Any, batch: int) -> Any:
    """The sampler of a checkpoint, once all that it will be asked for is known to be right."""
    import jax

    from cinema_jax.sampling.requests import check_requests

    check_requests(pipeline.preprocessor, requests)
    options.keep_compiled()
    # Each process makes videos of its own.
    return pipeline.load(options.tell, **options.placement(settings, batch, jax.local_devices()))


def _own(pipeline: Any, settings: Any, output: Path) -> None:
    """Compare what is generated for a run's held-out clips with the clips themselves."""
    from cinema_jax.evaluation import own

    run = pipeline.run
    clips = own.held_out(run, settings, CASES.value)
    sampler = _sampler(pipeline, own.requests(clips), settings, BATCH.value)
    text = own.evaluate(run, sampler, settings, clips, output, batch=BATCH.value, name=_name())
    if distributed.is_first():
        print(f"{text}\n{output}/figures.json, {output}/index.html")


def _name() -> str:
    """What pages call the checkpoint: they are shown to others, to whom this machine's folders are nothing."""
    where = options.CHECKPOINT.value
    return where if where == "packaged" or where.startswith("hf://") else Path(where).absolute().name


def _beside(checkpoint: Path) -> Path:
    """Where the report goes: into the checkpoint, unless that is the installed project's or the hub's cache."""
    from huggingface_hub import constants

    from cinema_jax.experiment import parts

    others = parts.PACKAGED, Path(constants.HF_HUB_CACHE)
    return Path("evaluation") if set(others) & set(checkpoint.parents) else checkpoint / "evaluation"


def _critters(pipeline: Any, settings: Any, output: Path) -> None:
    """Generate what is missing, judge everything, and write the report."""
    from cinema_jax.evaluation import benchmark, large, report, videos
    from cinema_jax.evaluation.judging import Eyes
    from cinema_jax.evaluation.suite import COUNTS, PER_COUNT, SEED, Suite
    from cinema_jax.experiment import parts

    data = pipeline.run.config.data
    cutouts, others = _cutouts(SUBJECTS.value, data.subjects) if SUBJECTS.value else (None, [])
    most = min(data.max_references, max(COUNTS) if cutouts is None else len({cutout.subject for cutout in cutouts}))
    counts = tuple(count for count in COUNTS if count <= most)
    size = settings.frames, settings.height, settings.width
    suite = Suite(*size, per_count=CASES.value or PER_COUNT, counts=counts, cutouts=cutouts, others=others)
    sampler = _sampler(pipeline, videos.requests(suite.cases), settings, BATCH.value)
    metrics = [large.Clip(Path(CLIP.value))] if CLIP.value else []
    metrics += [large.Dino(Path(DINO.value))] if DINO.value else []
    subjects = [cutout.key for cutout in cutouts or ()]
    eyes, digests = Eyes(), videos.digests(sampler)
    generated, seconds = videos.generate(sampler, settings, suite.cases, output, BATCH.value, digests, subjects)
    if not distributed.is_first():
        return
    begun = time.monotonic()
    real = [suite.real(case) for case in suite.cases]
    kinds = {"generated": generated, "real": real, "reconstructed": videos.reconstruct(sampler, real, BATCH.value)}
    names = benchmark.read_names(eyes, suite)
    results = {kind: benchmark.judge(eyes, names, suite.cases, them, kind, metrics) for kind, them in kinds.items()}
    found = benchmark.figures(suite.cases, results)
    about = {
        "suite": "critters",
        "suite_seed": SEED,
        "subjects": subjects,
        "candidates": suite.candidates,
        "checkpoint": _name(),
        "digests": digests | {"judge": eyes.digest},
        "settings": dataclasses.asdict(settings),
        "seconds": {"generate": round(seconds, 1), "judge": round(time.monotonic() - begun, 1)},
    }
    text = report.table(found, suite.candidates)
    title = f"{_name()}: suite critters (seed {SEED}), {len(suite.cases)} prompts"
    page = report.write_page(output, found, suite.candidates, suite.cases, results, kinds, data.fps, title)
    file = Path(JSON.value) if JSON.value else output / "figures.json"
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    parts.write_json(file, report.as_json(found, suite.cases, results, about))
    print(f"{title}\n\n{text}\n\ngenerated in {seconds:.0f} s, judged in {about['seconds']['judge']:.0f} s")
    print(f"{file}, {page}")


def _cutouts(folder: str, trained: str) -> tuple[list[Any], list[Any]]:
    """The pictures that play, and those that are only compared with because the run has seen them in training.

    Raises InputError if there is none that it has not seen.
    """
    from cinema_jax.data.critters.cutout import find_cutouts, never_seen

    found = find_cutouts(folder)
    if not trained:
        return found, []
    # A published config has the folder's name alone.
    same = Path(trained).name == Path(folder).absolute().name
    if not (Path(trained).is_dir() or same):
        print(f"trained on pictures of {trained}, which is not here: whether some are in {folder} is not known")
        return found, []
    unseen = never_seen(found, trained if Path(trained).is_dir() else folder)
    if not unseen:
        raise InputError(f"--subjects={folder} holds no picture that the checkpoint has not been trained on")
    if len(unseen) < len(found):
        print(f"{folder}: {len(unseen)} of {len(found)} pictures are used as subjects; the others were trained on")
    return unseen, [cutout for cutout in found if cutout not in unseen]


def _opens2v(pipeline: Any, settings: Any, output: Path) -> None:
    """Write the videos that OpenS2V-Eval's scripts score."""
    from cinema_jax.evaluation import opens2v, videos

    if not SAMPLES.value:
        raise InputError("--suite=opens2v needs --samples, for example OpenS2V-Eval/Open-Domain_Eval.json")
    samples = opens2v.read_samples(Path(SAMPLES.value))
    # Those of its list are large.
    batch = BATCH.value if BATCH.present else 1
    sampler = _sampler(pipeline, map(opens2v.request, samples, range(len(samples))), settings, batch)
    about = {"suite": "opens2v", "digests": videos.digests(sampler), "settings": dataclasses.asdict(settings)}
    made = opens2v.generate(sampler, settings, samples, output, about, batch)
    if distributed.is_first():
        print(f"{output}: {len(samples)} videos, {made} of them made now; --scores merges what is said of them")


def _merge() -> None:
    """Print and write the total of OpenS2V-Eval."""
    from cinema_jax.evaluation import opens2v
    from cinema_jax.experiment import parts

    merged = opens2v.merge(Path(SCORES.value), DOMAIN.value)
    print("\n".join(f"{name:18} {100 * value:6.2f} %" for name, value in merged.items()))
    if JSON.value:
        parts.write_json(Path(JSON.value), merged)


if __name__ == "__main__":
    command.run(main)
