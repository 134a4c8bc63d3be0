"""Work divided by a hash of the videos' names, so that what is done stays done whoever does the rest."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cinema_jax.curation.results import Results, digest
from cinema_jax.errors import InputError
from cinema_jax.inputs.files import MOST_OF_LIST, read_json, write_json
from cinema_jax.inputs.typed import checked

# Of what stands in files of results: another number lets all be done anew.
_VERSION = 1


@runtime_checkable
class Item(Protocol):
    """Something to be done for one video."""

    @property
    def name(self) -> str:
        """The video's."""

    @property
    def content(self) -> tuple:
        """All that its results follow from, as values of JSON."""


@runtime_checkable
class Work(Protocol):
    """A step of work, a dataclass whose fields are its config; it is sent to other processes."""

    def __call__(self, items: Sequence[Any], /) -> Results:
        """What becomes of some videos."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A share of the work.

    Attributes:
        file: of its results.
        key: what they follow from: the step, its config and the files.
        items: its videos.
    """

    file: str
    key: str
    items: tuple[Any, ...]

    def done(self) -> bool:
        """Whether its results are there, made of the same."""
        try:
            return read_json(Path(self.file), MOST_OF_LIST).get("key") == self.key
        except InputError:
            return False

    def do(self, work: Work) -> Results:
        """Do it and keep the results, whole or not at all."""
        results = work(self.items)
        write_json(Path(self.file), {"key": self.key, "results": dataclasses.asdict(results)})
        return results

    def results(self) -> Results:
        """Of a shard that is done."""
        return checked(read_json(Path(self.file), MOST_OF_LIST)["results"], Results, f"{self.file}: ")


def divided(folder: Path, step: str, work: Work, items: Iterable[Item], count: int) -> list[Shard]:
    """The shards that are not empty, of at most `count`; their results go to a folder named after the step."""
    groups: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        groups[_number(item.name, count)].append(item)
    (folder / step).mkdir(parents=True, exist_ok=True)
    config = json.loads(json.dumps(dataclasses.asdict(work)))
    shards = []
    for number, own in sorted(groups.items()):
        own.sort(key=lambda item: item.name)
        key = digest(_VERSION, step, config, [item.content for item in own])
        shards.append(Shard(str(folder / step / f"{number:06d}.json"), key, tuple(own)))
    return shards


def _number(name: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % count
