"""The model card of an exported checkpoint: what it is, how it was trained, and how to load it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cinema_jax.experiment import parts
from cinema_jax.experiment.fit import reads_states
from cinema_jax.experiment.pipelines import FOLDERS, OWN_PIPELINE
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import Standing
from cinema_jax.models.t5.weights import CLASSES

_HEAD = """\
---
library_name: diffusers
pipeline_tag: {task}
tags:
- cinema_jax
- subject-to-video
---

# {title}

Exported by [cinema_jax](https://arxiv.org/abs/2503.10391), an independent implementation of CINEMA: video of several
subjects, from one picture of each and one sentence.

## Use

```bash
python -m cinema_jax.generate --checkpoint=DIR{reference} --prompt="..." --output=out.mp4
```

```python
{snippet}
```
"""
_PIPELINE = """\
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("DIR")  # text only: references need cinema_jax"""

_READERS = {"mllm": "the multimodal LLM", "t5": "T5", "both": "the multimodal LLM and T5"}


_CODES = """\
import cinema_jax  # the large kernels are {codes} codes with scales, which diffusers does not read

pipe = cinema_jax.Pipeline.from_pretrained("DIR")"""


def model_card(standing: Standing, names: Iterable[str], pipeline: str, codes: str | None = None) -> str:
    """The card in Markdown.

    Args:
        standing: the weights that were exported.
        names: the parts that were.
        pipeline: the class in model_index.json.
        codes: what large kernels were made, if not numbers.
    """
    run, names = standing.run, list(names)
    config = run.config
    snippet = "\n".join(_loading(run, names)) if pipeline == OWN_PIPELINE else _PIPELINE.format(pipeline=pipeline)
    snippet = _CODES.format(codes=codes) if codes else snippet
    reads = "mllm" in names and config.condition.conditioner != "t5"
    task = "image-to-video" if reads else "text-to-video"
    reference = " --reference=a.png --reference=b.png" if reads else ""
    text = _HEAD.format(title="A CINEMA checkpoint", task=task, snippet=snippet, reference=reference)
    data = config.data
    facts = [
        ("video", f"{data.frames} frames of {data.width} x {data.height} at {data.fps:g} frames/s"),
        ("prediction", config.flow.prediction),
        ("prompt is read by", _READERS[config.condition.conditioner]),
        ("references as visual entity tokens", "yes" if config.condition.entities else "no"),
    ]
    rows = [f"| {name} | {value} |" for name, value in facts]
    text += "\n## Facts\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"
    text += "\n| part | folder | came from |\n|---|---|---|\n"
    for name in names:
        text += f"| {name} | `{FOLDERS[name]}/` | {_origin(run, name)} |\n"
    return text + _training(standing)


def _loading(run: Run, names: Iterable[str]) -> Iterable[str]:
    known = [name for name in ("dit", "vae", "t5") if name in names]
    configs = {name: run.part_config(name) for name in known}
    # No class of diffusers reads an MLLM's states.
    configs = {name: config for name, config in configs.items() if not reads_states(config)}
    kinds = {name: parts.kind_of(name, config).names[0] for name, config in configs.items()}
    if "t5" in kinds:
        kinds["t5"] = CLASSES[configs["t5"].model_type]
    for name, kind in kinds.items():
        yield f"from {'transformers' if name == 't5' else 'diffusers'} import {kind}"
    yield ""
    for name, kind in kinds.items():
        yield f'{FOLDERS[name]} = {kind}.from_pretrained("DIR", subfolder="{FOLDERS[name]}")'


def _origin(run: Run, name: str) -> str:
    folder = run.folder(name)
    if folder is None or run.workdir in folder.parents:
        # Where its stage began, if that is on record.
        origins = [record["parts"].get(name) for stage in run.config.stages if (record := run.finished(stage))]
        first = next((origin for origin in origins if origin), None)
        if first is None:
            return "this checkpoint"
        return "random numbers, trained here" if first == "random" else f"{_short(Path(first))}, trained here"
    return _short(folder)


def _short(folder: Path) -> str:
    """The last names of a path: the rest of it is nobody's business."""
    return "the project's own packaged weights" if parts.PACKAGED in folder.parents else "/".join(folder.parts[-2:])


def _training(standing: Standing) -> str:
    run = standing.run
    records = {stage: run.finished(stage) for stage in run.config.stages}
    if standing.stage is None:
        return "\nNothing was trained here: these are the weights that were imported.\n"
    kind = "moving average of the weights" if standing.weights == "ema" else "last weights"
    when = f", {standing.stage} at step {standing.step}"
    if records[standing.stage] is None:
        when += f" of {run.config.of_stage(standing.stage).steps}, which was still being trained"
    text = f"\n## Training\n\nExported: the {kind}{when}. Data: {_data(run.config.data)}.\n\n"
    text += "| stage | steps | batch | learning rate | optimizer | measured |\n|---|---|---|---|---|---|\n"
    for stage, record in records.items():
        section: Any = run.config.of_stage(stage)
        # `ratio/...` are many, and for whoever trains.
        told = {k: v for k, v in (record or {}).items() if isinstance(v, float) and k != "waiting" and "/" not in k}
        measured = [f"{k} {v:.4g}" for k, v in told.items()]
        optimizer = section.optimizer
        done = "; ".join(measured) if record else "not finished"
        text += f"| {stage} | {section.steps} | {section.batch_size} | {optimizer.learning_rate:g} "
        text += f"| {optimizer.name} | {done} |\n"
    return text


def _data(data: Any) -> str:
    if data.source != "critters":
        return f"the {'videos' if data.source == 'folder' else 'prepared records'} of `{Path(data.path).name}`"
    return "drawn critters" + (f" with the subjects of `{Path(data.subjects).name}`" if data.subjects else "")
