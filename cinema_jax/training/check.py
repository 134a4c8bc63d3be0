"""A check on the spot, before a run: are all hosts alike, does what the run needs work here, and how fast is it.

What hosts say of themselves goes through jax's key-value store, so that hosts which differ in versions or devices, and
could not compute together, are named as well. What is written lies in a folder of its own in the workdir, which is
removed.
"""

import contextlib
import math
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cinema_jax.config import Config
from cinema_jax.devices import distributed, peers, sharding, watchdog
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.training import beginning, facts, links, rehearsal
from cinema_jax.training.phases import Phase, check_batches

GB = 1e9
# Of clocks. Files' times, and the logs of hosts laid side by side, mislead above that.
CLOCK_SECONDS = 5.0
# What each host writes into the workdir, and how much its own disk must have left for what libraries put there.
PROBE_BYTES, TEMPORARY_BYTES = 1 << 20, 1 << 30
# Of a host's problems: one with another config may differ in every field.
MAX_LISTED = 8


def check_and_tell(config: Config, workdir: Path, amend: bool = False) -> None:
    """Check, and print in process 0 what was found; raises like `check`."""
    started = time.perf_counter()
    lines = check(config, workdir, amend)
    if distributed.is_first():
        print("\n".join([*lines, f"all is well, after {time.perf_counter() - started:.0f} s"]))


def check(config: Config, workdir: Path, amend: bool = False) -> list[str]:
    """What was found, in lines for process 0 to print. Every process must call this.

    `amend`: whether the run that is to follow may change the config of the one in `workdir`.

    Raises:
        InputError: in all processes: hosts differ, or something does not work; one line for each host concerned.
    """
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    run = Run(config, workdir)
    with _folder(workdir) as folder:
        report = Check(run, folder, amend)
        report.hosts()
        report.devices()
        if config.stages and not report.stages:
            report.tell("stages", "all are finished: nothing is left to run")
        for stage in report.stages:
            report.data(stage)
        for stage in report.stages[:1]:
            report.step(stage)
    return report.lines


class Check:
    """The checks of one run. Each is a method that every process must call, and ends all where one finds fault."""

    def __init__(self, run: Run, folder: Path | None, amend: bool):
        """`folder`: where to write; None where this process does not see it."""
        self.run, self.folder, self.amend = run, folder, amend
        self.stages = [name for name in run.config.stages if run.finished(name) is None]
        self.lines: list[str] = []
        self._names: dict[int, str] = {}
        self._batches: dict[str, rehearsal.Share] = {}

    def tell(self, what: str, sentence: str) -> None:
        """A line of the report."""
        self.lines.append(f"{what:<12}{sentence}")

    def hosts(self) -> None:
        """Versions, config, environment, data and devices are the same on all; clocks agree; all see the workdir."""
        watchdog.begin("the check of the hosts")
        mine = facts.of_host(self.run) | facts.of_environment()
        (files, unseen), (room, full) = attempt(self._of_files), attempt(self._room)
        said = distributed.exchange("facts", [distributed.name(), mine, files, room])
        self._names = {i: name for i, (name, *_) in said.items()}
        problems, clocks = distributed.exchange("problems", unseen + full), clock_offsets()
        compared = [{i: each[place] for i, each in said.items() if each[place]} for place in (1, 2)]
        for found in (*map(differences, compared), wrong_clocks(clocks)):
            for process, sentences in found.items():
                problems[process] += sentences
        self._end_if_wrong(problems)
        versions = ", ".join(f"{name} {mine[name]}" for name in facts.VERSIONS if name in mine)
        apart = max(clocks.values()) - min(clocks.values())
        self.tell("hosts", f"{len(said)}, with {versions}; equal in code, config, environment and data")
        self.tell("clocks", f"within {apart:.2f} s")
        self._free, temporary = (min(sizes) for sizes in zip(*(room for *_, room in said.values()), strict=True))
        self.tell("workdir", f"{self.run.workdir}: seen by all, {self._free / GB:.1f} GB free")
        self.tell("disks", f"at least {temporary / GB:.1f} GB free for temporary files on each host")

    def devices(self) -> None:
        """The mesh, which rows of a batch each host holds, and that all axes of the mesh connect what they should."""
        watchdog.begin("the check of the links")
        self.mesh, wrong = attempt(self._mesh)
        self._end_if_wrong(distributed.exchange("mesh", wrong))
        order = [[device.id, device.process_index] for device in self.mesh.devices.flat]
        self._end_if_differing("the order of the mesh's devices", facts.digest(order))
        kinds = Counter(device.device_kind for device in self.mesh.devices.flat)
        shape = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1) or "one device"
        counted = " and ".join(f"{count} x {kind}" for kind, count in kinds.items())
        self.tell("devices", f"{counted}, {jax.local_device_count()} a host; mesh {shape}")
        started = time.perf_counter()
        self._end_if_wrong(distributed.exchange("links", links.broken(self.mesh)))
        axes = ", ".join(axis for axis, size in self.mesh.shape.items() if size > 1) or "none to try"
        self.tell("links", f"{axes}: sums and gathers are right, {time.perf_counter() - started:.1f} s with compiling")

    def data(self, stage: str) -> None:
        """Each host loads its rows of the next batch of a stage, in each of its phases that are not over."""
        batches = [self._batch_of(stage, *one) for one in rehearsal.phases_left(self.run, stage)]
        # The one with the longest clips, or most of them, is tried.
        self._batches[stage] = max(batches, key=_clips)

    def _batch_of(self, stage: str, phase: Phase, step: int) -> rehearsal.Share:
        watchdog.begin(f"the check of the data of {stage}")
        found, wrong = attempt(lambda: rehearsal.next_batch(self.run, stage, self.mesh, phase, step))
        self._end_if_wrong(distributed.exchange(f"data of {phase.purpose}", found.problems if found else wrong))
        self._end_if_differing(f"the examples of the next batch of {phase.purpose}", facts.digest(found.ids))
        said = distributed.exchange(f"time for {phase.purpose}", found.seconds)
        slowest = max(said, key=said.get)
        rate = len(found.rows) / said[slowest]
        rows = sharding.host_rows(self.mesh, found.size)
        shares = "; ".join(f"process {i} rows {_ranges(held)}" for i, held in rows.items())
        self.tell("data", f"{phase.purpose}, step {found.step + 1}, batch of {found.size}: {shares}")
        self.tell(
            "", f"the slowest host ({self._names[slowest]}) loads its share at {rate:.2f} examples/s, with starting"
        )
        return found

    def step(self, stage: str) -> None:
        """The real program with random weights: compiled, run, and its state written, read and compared."""
        size = rehearsal.state_bytes(self.run, stage, self.mesh)
        config = self.run.config.of_stage(stage)
        forever = config.steps // config.keep_every if config.keep_every else 0
        kept, ever = config.keep + 1 + forever, f", {forever} by keep_every" if forever else ""
        needed = f"{kept} checkpoints of {size / GB:.3f} GB ({stage}: keep {config.keep}{ever}, and one being written)"
        there = f"{self.run.workdir} has {self._free / GB:.3f} GB free"
        self._end_unless("space", self._free >= kept * size, f"{there}, and needs room for {needed}")
        with jax.set_mesh(self.mesh):
            watchdog.begin(f"compiling the step of {stage}")
            taken = rehearsal.take_step(self.run, stage, self.mesh, self._batches[stage])
            self._end_unless("loss", math.isfinite(taken.loss), f"the loss of {stage} is {taken.loss}")
            self._end_if_differing(f"the loss of {stage}", taken.loss.hex())
            self.tell(
                "step", f"{stage}: compiled in {taken.compiling:.1f} s, {taken.seconds:.2f} s a step, loss finite"
            )
            watchdog.begin("the check of the checkpoint")
            trip = rehearsal.round_trip(taken.state, self.folder / "checkpoint")
        self._end_unless("checkpoint", not trip.other, f"the checkpoint came back otherwise: {', '.join(trip.other)}")
        written, read = (f"{s:.1f} s ({trip.bytes / GB / s:.3f} GB/s)" for s in (trip.writing, trip.reading))
        self.tell("checkpoint", f"{trip.bytes / GB:.3f} GB written in {written}, read in {read}, the same bits")
        self.tell("space", f"{there}, enough for {needed}")

    def _mesh(self) -> Mesh:
        """That of the run, which the batches of all stages fit."""
        mesh = sharding.make_mesh(**vars(self.run.config.mesh))
        check_batches(self.run.config, self.stages, mesh)
        return mesh

    def _of_files(self) -> dict[str, Any]:
        """Data and weights as this host sees them."""
        self.run.check_prediction()
        self.run.refuse_another(self.amend)
        beginning.check(self.run)
        return facts.of_data(self.run) | facts.of_weights(self.run)

    def _room(self) -> tuple[int, int]:
        """Bytes that are free in the workdir and for temporary files; what may differ."""
        if self.folder is None:
            raise InputError(
                f"it does not see what process 0 makes in {self.run.workdir}: --workdir must lie on a file system that "
                "all hosts share"
            )
        probe = self.folder / f"process-{jax.process_index()}"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        except OSError as error:
            raise InputError(f"it cannot write {PROBE_BYTES} bytes to {probe}: {error.strerror}") from None
        probe.unlink()
        temporary = shutil.disk_usage(tempfile.gettempdir()).free
        if temporary < TEMPORARY_BYTES:
            raise InputError(
                f"{tempfile.gettempdir()} has {temporary / GB:.2f} GB free for temporary files; "
                f"{TEMPORARY_BYTES / GB:.2f} GB are needed"
            )
        return shutil.disk_usage(self.folder).free, temporary

    def _end_if_wrong(self, problems: Mapping[int, Sequence[str]]) -> None:
        """Raises InputError in all processes, a line for each process that has a problem."""
        if lines := [f"{self._names[i]}: {_listed(each)}" for i, each in sorted(problems.items()) if each]:
            raise InputError("\n  ".join(["the check has found", *lines]))

    def _end_unless(self, what: str, right: bool, problem: str) -> None:
        self._end_if_wrong(distributed.exchange(what, [] if right else [problem]))

    def _end_if_differing(self, what: str, value: Any) -> None:
        said = distributed.exchange(what, value)
        self._end_if_wrong(differences({i: {what: each} for i, each in said.items()}))


def _clips(batch: rehearsal.Share) -> int:
    """How large the videos of a whole batch are, where it has any."""
    return batch.size * batch.arrays["latents"][0].size if "latents" in batch.arrays else 0


def attempt(action: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What an action returns, or what is wrong where it cannot: nothing it does may wait for other processes."""
    try:
        return action(), []
    except InputError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{error.filename or 'the disk'}: {error.strerror}"]


def wrong_clocks(offsets: Mapping[int, float]) -> dict[int, list[str]]:
    """By process, what is wrong with its clock."""
    allowed = f"{CLOCK_SECONDS:g} s are allowed: times of files and logs mislead; synchronise it (NTP)"
    return {
        process: [f"its clock is {offset:+.1f} s off the others', and {allowed}"]
        for process, offset in offsets.items()
        if abs(offset) > CLOCK_SECONDS
    }


def refuse_unlike(config: Config, workdir: Path) -> None:
    """What every start of a run looks at, as it costs nothing: versions, code, config and devices.

    Raises:
        InputError: in all processes where they differ; one line for each host that does.
    """
    if distributed.several():
        said = distributed.exchange("hosts", [distributed.name(), facts.of_host(Run(config, workdir))])
        found = differences({i: values for i, (_, values) in said.items()})
        if lines := [f"{said[i][0]}: {_listed(each)}" for i, each in found.items() if each]:
            raise InputError("\n  ".join(["all hosts must be alike", *lines]))


def differences(said: Mapping[int, Mapping[str, Any]]) -> dict[int, list[str]]:
    """By process, what it says otherwise than most do; where as many say the one as the other, than the first."""
    found: dict[int, list[str]] = {process: [] for process in said}
    for name in sorted({name for values in said.values() for name in values}):
        values = {process: repr(each[name]) if name in each else "not there" for process, each in said.items()}
        usual = Counter(values.values()).most_common(1)[0][0]
        for process, value in values.items():
            if value != usual:
                found[process].append(f"{name} is {value}, and {usual} elsewhere")
    return found


def clock_offsets() -> dict[int, float]:
    """How many seconds each process's clock is ahead of the middle one, all read when the last one came."""
    distributed.meet("clocks")
    clocks = distributed.exchange("clocks", time.time())
    middle = sorted(clocks.values())[len(clocks) // 2]
    return {process: clock - middle for process, clock in clocks.items()}


@contextlib.contextmanager
def _folder(workdir: Path) -> Iterator[Path | None]:
    """A new folder in the workdir for the time of the check; None in a process that does not see it."""
    folder = workdir / f"check-{distributed.exchange('token', time.time_ns())[0]}"
    made = [path for path in (workdir, *workdir.parents) if not path.exists()]
    _, wrong = attempt(lambda: folder.mkdir(parents=True) if distributed.is_first() else None)
    if found := distributed.exchange("folder", wrong)[0]:
        raise InputError(found[0])
    with peers.in_the_end(lambda: _remove(folder, made) if distributed.is_first() else None):
        yield folder if distributed.becomes_visible(folder) else None
        distributed.meet("the check is over")


def _remove(folder: Path, made: Sequence[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # The workdir, where the check has made it, if there is nothing else in it by now.
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
    return "; ".join(problems[:MAX_LISTED]) + more


def _ranges(rows: Sequence[int]) -> str:
    """Rows in few words: 0-3, 8."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
