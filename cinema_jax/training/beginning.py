"""What can be known to be wrong with a run before anything is encoded or trained, each in one sentence."""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from cinema_jax import parts
from cinema_jax.config import Config
from cinema_jax.data.manifest import MAX_PROBLEMS, Entry, manifest_file, read_manifest
from cinema_jax.data.pipeline import Preprocessor
from cinema_jax.errors import InputError
from cinema_jax.sampling import needed_parts
from cinema_jax.training.phases import check_microbatches, every_run
from cinema_jax.training.run import Run
from cinema_jax.training.stages import STAGES

logger = logging.getLogger(__name__)


def check(run: Run) -> None:
    """Check the stages that are still to be run: their parts, their data, and that its texts are not too long.

    Raises:
        InputError: parts that do not fit each other or the config, a part without weights that no stage trains, a
            manifest or a split that cannot be used, texts for which the config has no room, each with its line.
    """
    todo = [stage for stage in run.config.stages if run.finished(stage) is None]
    check_microbatches(run.config, todo)
    check_samples(run.config, todo)
    _check_parts(run, todo)
    if run.config.data.source == "folder":
        for one in every_run(run, todo):
            for split in ("train", "validation"):
                found = [bucket.bucket_name for bucket, _ in one.sources(split)]
                if empty := [bucket.bucket_name for bucket in one.buckets if bucket.bucket_name not in found]:
                    logger.info("%s: no clip belongs to %s, which is left out", split, ", ".join(empty))
            _check_texts(one, todo)


def check_samples(config: Config, stages: Iterable[str]) -> None:
    """Raises `InputError` where a stage is to draw contact sheets without the parts that generate a video."""
    for stage in stages:
        missing = set(needed_parts(config)).difference(STAGES[stage].needed(config))
        if (every := getattr(config, stage).sample_every) and missing:
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


def _check_texts(run: Run, todo: Sequence[str]) -> None:
    data, found = run.config.data, {}
    file, entries = manifest_file(data.path), read_manifest(data.path, data.max_references, data.follow_links)
    for one in run.buckets:
        sources = [one.source(split) for split in ("train", "validation")] if one.bucket is not None else []
        names = {source.id(i) for source in sources for i in range(len(source))}
        own = [entry for entry in entries if one.bucket is None or entry.id in names]
        for texts, room, field, name in _readings(one, todo, one.preprocessor(), own):
            for entry, length in zip(own, texts, strict=True):
                if length > room:
                    where = f" in {one.bucket_name}" if one.bucket is not None and "mllm" in field else ""
                    found[
                        f'{file}:{entry.line}: "{name}" takes {length} tokens; {field} has room for {room}{where}'
                    ] = entry.line
    if found:
        messages = sorted(found, key=found.get)
        more = [f"... and {len(messages) - MAX_PROBLEMS} more"] if len(messages) > MAX_PROBLEMS else []
        raise InputError("\n".join([*messages[:MAX_PROBLEMS], *more]))


def _readings(
    run: Run, todo: Sequence[str], preprocessor: Preprocessor, entries: Sequence[Entry]
) -> Iterator[tuple[list[int], int, str, str]]:
    """What the stages read of all entries: (tokens of each, most that there is room for, its field, the entry's)."""
    condition, captions = run.config.condition, [entry.caption for entry in entries]
    prompts, own = [entry.prompt for entry in entries], [entry.prompt != entry.caption for entry in entries]
    text, field = preprocessor.text_lengths, "config.condition.text_tokens"
    if {"t5", "pretrain", "align"} & set(todo):
        yield text(captions), condition.text_tokens, field, "caption"
    if "t5" in todo or ("finetune" in todo and condition.conditioner == "t5"):
        yield [n * new for n, new in zip(text(prompts), own, strict=True)], condition.text_tokens, field, "prompt"
    if not {"align", "finetune"} & set(todo) or condition.conditioner != "mllm" or preprocessor.processor is None:
        return
    counts = [len({reference.subject for reference in entry.references}) for entry in entries]
    most: Callable = preprocessor.processor.most_tokens
    room, field = preprocessor.processor.max_length, "config.condition.mllm_tokens"
    yield most(prompts, counts), room, field, "prompt with its references"
    if "finetune" in todo and run.config.finetune.captions:
        yield most(captions, counts), room, field, "caption with its references"
    elif "align" in todo:
        yield most(captions, [0] * len(entries)), room, field, "caption"
