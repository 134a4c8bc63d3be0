"""The videos of a list: none is made twice, whatever ends the command, and processes share them.

Beside each video lies `<video>.json`, written before it: what the video is made of. A video whose note says what the
list says is finished; one whose note says something else is never replaced. Of several processes each makes every
n-th batch of what is missing.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.experiment.fingerprint import fingerprint
from cinema_jax.experiment.standing import Standing
from cinema_jax.inputs import places
from cinema_jax.inputs.files import read_json, write_json
from cinema_jax.sampling import lists
from cinema_jax.sampling.lists import Entry, Found
from cinema_jax.sampling.pipeline import Pipeline
from cinema_jax.sampling.requests import Request, Settings, needed_parts
from cinema_jax.sampling.video import Video

Batch = TypeVar("Batch")

# In a note, what is not compared: it follows from the rest, and tells people.
_TOLD = {"standing", "expanded_prompt"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One video of a list."""

    entry: Entry
    settings: Settings
    # What it is made of: its note.
    made_of: Mapping[str, Any]
    # How the multimodal LLM is asked to expand its prompt; None: it is taken as it is.
    instruction: str | None


class Many:
    """A list's videos in a folder.

    Args:
        pipeline: no weights of it are read before the list is known to be right.
        found: the list.
        folder: of the videos.
        asked: `Options` that hold for all lines; a line's own size comes before that.
        written: scale and loop of `Video.save`.
        expand: whether the prompts of lines that do not say so are expanded.
        instruction: a file that says how, in the place of the one that ships with the project.
        keep_going: leave out lines that are wrong, with a warning for each.

    Raises:
        InputError: a line is wrong, by its file, number and field, or the folder holds another video of its name.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        found: Found,
        folder: Path,
        asked: Mapping[str, Any],
        written: Mapping[str, int | None],
        *,
        expand: bool = False,
        instruction: str | None = None,
        keep_going: bool = False,
    ):
        self.pipeline, self.found, self.folder, self.keep_going = pipeline, found, folder, keep_going
        self._asked, self._written, self._expand = asked, written, expand
        expands = instruction is not None or expand or any(entry.line.expand_prompt for entry in found.entries)
        self._instruction = pipeline.instruction(instruction) if expands else None
        pipeline.checked([], **asked)
        self._weights = fingerprint(pipeline.standing, needed_parts(pipeline.run.config))
        distributed.agree("the weights of --checkpoint", self._weights)
        self.jobs, problems = [], []
        for entry in found.entries:
            try:
                self.jobs.append(self._job(entry))
            except InputError as error:
                problems.append(f"{entry.place}: {error}")
        lists.refuse(problems, keep_going)
        self._left_out, self._all = found.left_out + len(problems), found.left_out + len(found.entries)
        self._check_folder()

    def _job(self, entry: Entry) -> Job:
        places.check_place(self.folder / entry.output, f".{entry.output}.json.{24 * 'x'}")
        settings = self.pipeline.checked([self._request(entry)], **{**self._asked, **entry.size})
        pictures = [hashlib.sha256(path.read_bytes()).hexdigest() for path in entry.pictures]
        made_of = {**lists.as_json(entry), "references": pictures, "settings": dataclasses.asdict(settings)}
        made_of |= {**self._written, "weights": self._weights, "standing": str(self.pipeline.standing)}
        made_of |= {"quantised": self.pipeline.weights} if self.pipeline.weights else {}
        said = entry.line.expand_prompt
        if not (self._expand if said is None else said):
            return Job(entry, settings, made_of, None)
        digest = hashlib.sha256(self._instruction.encode()).hexdigest()
        return Job(entry, settings, made_of | {"expand_instruction": digest}, self._instruction)

    def _request(self, entry: Entry) -> Request:
        line = entry.line
        [request] = self.pipeline.requests(
            line.prompt, entry.pictures, seed=line.seed, negative_prompt=line.negative_prompt
        )
        return request

    def _check_folder(self) -> None:
        """Raises `InputError` where a video is there that is none of this list: nothing is ever replaced."""
        wrong = []
        for job in self.jobs:
            file, note = self._video(job), self._note(job)
            if file.exists() and not note.exists():
                wrong.append(f"{file} is there, and no {note.name} beside it says what it was made of")
            elif file.exists() and (others := self._others(job)):
                wrong.append(
                    f"{file} is there, but was made with other {', '.join(others)} than {job.entry.place} says"
                )
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise InputError(f"{wrong[0]}{more}: remove it, or name another --output")

    def _others(self, job: Job) -> list[str]:
        """The names of that in which a note differs from what its video should be made of."""
        there = read_json(self._note(job))
        names = (there.keys() | job.made_of.keys()) - _TOLD
        return sorted(name for name in names if there.get(name) != job.made_of.get(name))

    def _video(self, job: Job) -> Path:
        return self.folder / job.entry.output

    def _note(self, job: Job) -> Path:
        return self.folder / f"{job.entry.output}.json"

    def make(
        self, batch: int, tell: Callable[[Standing], Any], place: Callable[..., dict[str, Any]] = lambda *_: {}
    ) -> int:
        """Make what is missing, each video by one process; how many all processes have made.

        Args:
            batch: videos of one size that are sampled at once.
            tell: see `Pipeline.load`.
            place: the rest of what that takes, of the settings and number of the largest batch, and the devices.

        Raises:
            InputError: the weights change meanwhile, or, unless `keep_going` is set, a picture that was there is gone.
        """
        distributed.in_first(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        distributed.check_shared(self.folder, "--output")
        missing = [number for number, job in enumerate(self.jobs) if not self._video(job).exists()]
        # Before the first one writes, all know what all have to do.
        missing = distributed.gather(missing)[0]
        share = list(own_share(_batches([self.jobs[number] for number in missing], batch)))
        failed: list[str] = []
        if share:
            largest = max((jobs[0].settings for jobs in share), key=lambda x: x.frames * x.height * x.width)
            placement = place(largest, batch, jax.local_devices())
            self.pipeline.load(lambda standing: self._same(standing, tell), **placement)
            with tqdm(total=sum(map(len, share)), desc="generate", unit="video") as bar:
                for jobs in share:
                    failed += self._make(jobs, batch)
                    bar.update(len(jobs))
        # Whoever leaves early would end the others.
        every = distributed.exchange("videos that could not be made", len(failed)).values()
        self._left_out += sum(every)
        return len(missing) - sum(every)

    def _make(self, jobs: list[Job], batch: int) -> list[str]:
        """Make videos of one size; what is wrong with those that cannot be made."""
        asked, problems = [], []
        for job in jobs:
            try:
                request = self._request(job.entry)
                asked.append((job, self.pipeline.expanded(request, job.instruction) if job.instruction else request))
            except InputError as error:
                problems.append(f"{job.entry.place}: {error}")
        lists.refuse(problems, self.keep_going)
        if asked:
            requests = [request for _, request in asked]
            # One shape, one compilation.
            filled = requests + requests[:1] * (batch - len(requests))
            for (job, _), video in zip(asked, self.pipeline.generate(filled, jobs[0].settings, False), strict=False):
                self._write(job, video)
        return problems

    def _write(self, job: Job, video: Video) -> None:
        write_json(self._note(job), {**job.made_of, **expansion(video)})
        video.save(self._video(job), **self._written)

    def _same(self, standing: Standing, tell: Callable[[Standing], Any]) -> None:
        if str(standing) != str(self.pipeline.standing):
            raise InputError(
                f"{self.pipeline.run.workdir} has gone on training ({standing}): start again when it is finished, or "
                "make a checkpoint of what it has with convert export"
            )
        tell(standing)

    def close(self) -> None:
        """Raises `InputError` where lines were left out, so that nobody takes the folder for complete."""
        if self._left_out:
            raise InputError(f"{self.found.file}: {self._left_out} of {self._all} lines were left out, as told above")


def expansion(video: Video) -> dict[str, str]:
    """What a note says of a prompt that was expanded."""
    return {} if video.asked is None else {"expanded_prompt": video.prompt}


def _batches(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """Those of one size of video together, in the order of the list."""
    alike: dict[Settings, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.settings, []).append(job)
    for own in alike.values():
        yield from (own[start : start + size] for start in range(0, len(own), size))


def own_share(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Those of this process: its devices make them, and no others."""
    return itertools.islice(batches, jax.process_index(), None, jax.process_count())
