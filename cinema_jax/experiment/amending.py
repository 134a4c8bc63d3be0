"""Going on in a folder with another config: what may change there, and the history of what did.

A run that never came to a checkpoint is replaced. One that did may be lengthened, and stages that have not begun and
the way videos are sampled may change, where `--amend` asks for it. What would change what was already trained is
refused, by the field's name.
"""

import dataclasses
import datetime
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cinema_jax.config import STAGES, Config, parse, to_dict
from cinema_jax.config.learning_rate import learning_rate
from cinema_jax.errors import InputError
from cinema_jax.experiment import hub, parts, results
from cinema_jax.experiment.checkpoint import complete_steps

logger = logging.getLogger(__name__)

HISTORY = "history.jsonl"
# Fields that say how a run is carried out, not what comes out: a run may be continued with other values.
FREE_FIELDS = (
    *("log_every", "eval_every", "sample_every", "checkpoint_every", "keep", "keep_every", "threads", "workers"),
    *("mesh", "remat", "microbatches"),
)
# Fields that decide how videos are sampled, and nothing of what is trained.
SAMPLING_FIELDS = (
    *("config.flow.solver", "config.flow.spacing", "config.flow.sample_steps", "config.flow.tiled_decoding"),
    *("config.flow.guidance_text", "config.flow.guidance_reference", "config.flow.dynamic_guidance"),
    "config.evaluate_identities",
)
# What a try leaves that never came to a checkpoint. Encoded videos are kept: they serve the next one.
_LEFT_OVER = ("metrics.jsonl", "goodput.json", "not_finite.json", "tensorboard", "checkpoints", "profile")


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which two configs differ."""

    # For example config.finetune.steps.
    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} is {self.old!r} there and {self.new!r} here"


def differences(old: Any, new: Any, path: str = "config") -> Iterator[Difference]:
    """The fields in which two configs, as plain dicts, differ, without those that are free."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key not in FREE_FIELDS:
                yield from differences(old.get(key), new.get(key), f"{path}.{key}")
    elif _named(old) != _named(new):
        yield Difference(path, old, new)


def _named(value: Any) -> Any:
    """Repositories of the hub were named without `hf://`, too."""
    return value.removeprefix(hub.SCHEME) if isinstance(value, str) else value


def has_begun(workdir: Path) -> bool:
    """Whether a folder with a config holds anything that was trained, or imported."""
    return bool(_done(workdir)) or (workdir / "parts").exists()


def replace(workdir: Path, config: Mapping[str, Any]) -> None:
    """Put a config in the place of one whose run never came to a checkpoint."""
    for name in _LEFT_OVER:
        left = workdir / name
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)
    parts.write_json(workdir / "config.json", config)
    logger.info("%s: the run there had not come to a checkpoint; this one takes its place", workdir)


def check(workdir: Path, config: Config, changes: Sequence[Difference], *, allowed: bool) -> None:
    """Whether the config of a run that has begun may be changed.

    Raises:
        InputError: fields that would change what was trained, by name and reason; or, unless `allowed`, any.
    """
    done = _done(workdir)
    refused = [f"{change} ({reason})" for change in changes if (reason := _refusal(change, config, done, workdir))]
    if changes and not allowed:
        advice = "Choose another --workdir, or the config it was started with"
        if not refused:
            advice += ", or say --amend to go on with these changes"
        listed = "; ".join(map(str, changes))
        raise InputError(f"{workdir} holds a run of another config; these fields differ: {listed}. {advice}")
    if refused:
        raise InputError(
            f"--amend cannot change what was trained in {workdir}: {'; '.join(refused)}. Choose another --workdir"
        )


def amend(workdir: Path, config: Config, changes: Sequence[Difference], *, allowed: bool) -> None:
    """Change the config of a run that has begun, and write down what was changed; raises like `check`."""
    check(workdir, config, changes, allowed=allowed)
    done = _done(workdir)
    before = parse(parts.read_json(workdir / "config.json"))
    for change in changes:
        stage, _, name = change.field.removeprefix("config.").partition(".")
        if name == "steps" and stage in done:
            # It goes on from its last checkpoint. Removed first: a run that is killed here is as it was.
            (workdir / "stages" / f"{stage}.json").unlink(missing_ok=True)
            _tell_schedule(stage, done[stage], before, config)
        logger.info("amended: %s was %r, is %r", change.field, change.old, change.new)
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "done": done,
        "changes": {change.field: [change.old, change.new] for change in changes},
    }
    with (workdir / HISTORY).open("a") as history:
        history.write(json.dumps(entry) + "\n")
    parts.write_json(workdir / "config.json", to_dict(config))


def _done(workdir: Path) -> dict[str, int]:
    """The stages that have begun, and the steps that each has kept."""
    saved = {stage: complete_steps(workdir / "checkpoints" / stage) for stage in STAGES}
    finished = {stage: found["steps"] for stage in STAGES if (found := results.record(workdir, stage))}
    return {stage: steps[-1] for stage, steps in saved.items() if steps} | finished


def _record(workdir: Path, stage: str) -> Path:
    return workdir / "stages" / f"{stage}.json"


def _refusal(change: Difference, config: Config, done: Mapping[str, int], workdir: Path) -> str | None:
    """Why a field may not change any more, or None."""
    if change.field in SAMPLING_FIELDS:
        return None
    if change.field == "config.stages":
        kept = [tuple(stages)[: len(done)] for stages in (change.old, change.new)]
        return None if kept[0] == kept[1] else f"{', '.join(done)} came first"
    stage, _, name = change.field.removeprefix("config.").partition(".")
    if stage not in STAGES:
        return "all stages depend on it"
    if stage not in done:
        return None
    if name != "steps":
        return f"{stage} has begun"
    if change.new < done[stage]:
        return f"{done[stage]} steps are done"
    if not _record(workdir, stage).exists():
        return None
    order = config.stages.index(stage) if stage in config.stages else 0
    if later := next((other for other in config.stages[order + 1 :] if other in done), None):
        return f"{later} started from what {stage} left"
    return "the finished VAE was rescaled" if stage == "vae" else None


def _tell_schedule(stage: str, done: int, before: Config, after: Config) -> None:
    old, new = (config.of_stage(stage) for config in (before, after))
    rates = [
        float(learning_rate(section.optimizer, section.steps, section.earlier_rates)(done)) for section in (old, new)
    ]
    logger.info(
        "%s goes on from step %d to %d (%d before): its %s schedule is now that of a run of this length, so the "
        "learning rate goes on at %.3g (%.3g before)",
        *(stage, done, new.steps, old.steps, new.optimizer.schedule, rates[1], rates[0]),
    )
