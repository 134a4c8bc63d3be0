"""What is in a folder of weights: parts, sizes, types, and what fits what."""

from collections.abc import Iterator
from pathlib import Path

from cinema_jax.errors import InputError
from cinema_jax.exchange.sources import find_all
from cinema_jax.experiment import parts
from cinema_jax.experiment.fit import fits
from cinema_jax.experiment.standing import line, stands_for
from cinema_jax.weights import shards


def inspect(folders: list[Path]) -> Iterator[str]:
    """Lines about the parts in `folders`; what is wrong with one part does not hide the others."""
    source, configs = find_all(folders), {}
    standing = stands_for(source.run) if source.run else None
    if standing:
        yield line(str(standing.run.workdir), standing)
    for name, folder in source.parts.items():
        if name in parts.TOKENIZERS:
            yield f"{name}: {folder}"
            continue
        try:
            configs[name] = parts.completed_config(name, folder, source.files.get(name))
            # Of a run that is not finished, what it has trained by now.
            own = standing is not None and standing.run.folder(name) == folder
            folder = standing.origin(name) if own else source.files.get(name, folder)
            arrays = standing.arrays(name) if own else parts.read(name, configs[name], folder)
            called = parts.published_name(parts.read_json(source.parts[name] / "config.json"))
            yield f"{name}: {folder}\n  {called}, {shards.describe(arrays)}; all names and shapes as config.json says"
        except InputError as error:
            yield f"{name}: {folder}\n  cannot be used: {error}"
    if source.run:
        config = source.run.config
        data = config.data
        yield f"video: {data.frames} frames of {data.width} x {data.height} at {data.fps:g} frames/s"
        yield f"prediction: {config.flow.prediction}; the prompt is read by {config.condition.conditioner}"
    for _, sentence in fits(configs):
        yield sentence
