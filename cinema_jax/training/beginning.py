"""What can be known to be wrong with a run before anything is encoded or trained, each in one sentence."""

import dataclasses
import functools
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from cinema_jax.config import Config
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts
from cinema_jax.experiment.amending import has_begun
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import refuse_unfinished
from cinema_jax.models.chunks import latent_shape
from cinema_jax.sampling.requests import needed_parts
from cinema_jax.training import texts
from cinema_jax.training.phases import check_microbatches, every_run
from cinema_jax.training.stages import STAGES

logger = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Check the stages that are still to be run: their parts, their data, and that its texts are not too long.

    Raises:
        InputError: parts that do not fit each other or the config, a part without weights that no stage trains, a
            manifest or a split that cannot be used, texts for which the config has no room, each with its line.
    """
    todo = [stage for stage in run.config.stages if run.finished(stage) is None]
    if run.config.init and not has_begun(run.workdir):
        refuse_unfinished(run.initial, f"config.init is {run.config.init!r}")
    check_microbatches(run.config, todo)
    check_samples(run.config, todo)
    _check_parts(run, todo)
    tell_ignored(run, todo)
    _check_clips(run, todo)
    sources = []
    for one in every_run(run, todo) if run.config.data.source != "critters" else ():
        for split in ("train", "validation"):
            found = one.sources(split)
            names = [bucket.bucket_name for bucket, _ in found]
            if empty := [bucket.bucket_name for bucket in one.buckets if bucket.bucket_name not in names]:
                logger.info("%s: no clip belongs to %s, which is left out", split, ", ".join(empty))
            sources += found
    texts.check(run, todo, texts.said_of(sources))


def tell_ignored(run: Run, todo: Iterable[str]) -> None:
    """Warn of sizes that were set in `config.<part>_model` and are ignored: weights have sizes of their own."""
    for name in dict.fromkeys(part for stage in todo for part in STAGES[stage].needed(run.config)):
        if (folder := run.folder(name)) is None:
            continue
        field, there = f"{name}_model", run.part_config(name)
        said, usual = getattr(run.config, field), getattr(Config(), field)
        for one in dataclasses.fields(said) if type(said) is type(usual) is type(there) else ():
            mine, theirs = getattr(said, one.name), getattr(there, one.name)
            if isinstance(mine, int | str) and mine not in (getattr(usual, one.name), theirs):
                logger.warning(
                    "config.%s.%s is %r, which is ignored: the weights in %s have %r",
                    *(field, one.name, mine, folder, theirs),
                )


def check_samples(config: Config, stages: Iterable[str]) -> None:
    """Raises `InputError` where a stage is to draw contact sheets without the parts that generate a video."""
    for stage in stages:
        missing = set(needed_parts(config)).difference(STAGES[stage].needed(config))
        if (every := config.of_stage(stage).sample_every) and missing:
            raise InputError(
                f"config.{stage}.sample_every is {every}, but {stage} has no {', '.join(sorted(missing))} to generate "
                "videos with: set it to 0"
            )


def _check_parts(run: Run, todo: Sequence[str]) -> None:
    begun: set[str] = set()
    structure = functools.cache(lambda name, config: parts.structure(name, config)[1])
    for stage in todo:
        needed = STAGES[stage].needed(run.config)
        configs = {name: run.part_config(name) for name in needed}
        run.check_fit(configs)
        shapes = {path: leaf for name in needed for path, leaf in structure(name, configs[name]).items()}
        begun |= {path.split("/")[0] for path in STAGES[stage].trained(run.config, shapes)[0]}
        if missing := [name for name in needed if name not in begun and run.folder(name) is None]:
            raise no_weights(stage, missing[0])


def _check_clips(run: Run, todo: Sequence[str]) -> None:
    """Whether the VAE takes clips of every bucket in every phase: those of a later one are encoded after days."""
    if not any("vae" in STAGES[stage].needed(run.config) for stage in todo):
        return
    vae = run.part_config("vae")
    for bucket in (bucket for one in every_run(run, todo) for bucket in one.buckets):
        data, phase = bucket.config.data, bucket.records_folder
        try:
            latent_shape(vae, data.frames, data.height, data.width)
        except InputError as error:
            raise InputError(f"the VAE takes no clips of {phase or 'config.data'}: {error}") from None


def no_weights(stage: str, part: str) -> InputError:
    """What is wrong where a stage would use a part that nobody has trained."""
    return InputError(
        f"{stage}: the {part} has no weights and is not trained here: name them as config.weights.{part}, or a "
        "checkpoint that has them as config.init"
    )


def check_weights(stage: str, origins: Mapping[str, str], trained: Collection[str]) -> None:
    """Raises `InputError` where a part is frozen in a stage, though nothing but random numbers is there for it."""
    for name, origin in origins.items():
        if origin == "random" and not any(path.startswith(f"{name}/") for path in trained):
            raise no_weights(stage, name)
