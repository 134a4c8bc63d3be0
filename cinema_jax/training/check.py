"""A check on the spot, before a run: are all hosts alike, does what the run needs work here, and how fast is it.

What hosts say of themselves goes through jax's key-value store, so that hosts which differ in versions or devices, and
could not compute together, are named as well. All of it happens in a folder of its own in the workdir, which is removed.
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
import numpy as np
from jax.sharding import Mesh

from cinema_jax import distributed, sharding
from cinema_jax.config import Config
from cinema_jax.errors import InputError
from cinema_jax.training import facts, links, rehearsal, watchdog
from cinema_jax.training.run import Run

GB = 1e9
# Of clocks. Files' times, and the logs of hosts laid side by side, mislead above that.
CLOCK_SECONDS = 5.0
# What each host writes into the workdir, and how much its own disk must have left for what libraries put there.
PROBE_BYTES, TEMPORARY_BYTES = 1 << 20, 1 << 30


def check_and_tell(config: Config, workdir: Path) -> None:
    """Check, and print in process 0 what was found; raises like `check`."""
    started = time.perf_counter()
    lines = check(config, workdir)
    if distributed.is_first():
        print("\n".join([*lines, f"all is well, after {time.perf_counter() - started:.0f} s"]))


def check(config: Config, workdir: Path) -> list[str]:
    """What was found, in lines for process 0 to print. Every process must call this.

    Raises:
        InputError: in all processes: hosts differ, or something does not work; one line for each host concerned.
    """
    if config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    run = Run(config, workdir)
    with _folder(workdir) as folder:
        report = Check(run, folder)
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

    def __init__(self, run: Run, folder: Path | None):
        """`folder`: where to write; None where this process does not see it."""
        self.run, self.folder = run, folder
        self.stages = [name for name in run.config.stages if run.finished(name) is None]
        self.lines: list[str] = []
        self._names: dict[int, str] = {}

    def tell(self, what: str, sentence: str) -> None:
        """A line of the report."""
        self.lines.append(f"{what:<12}{sentence}")

    def hosts(self) -> None:
        """Versions, config, environment, data and devices are the same on all; clocks agree; all see the workdir."""
        watchdog.begin("the check of the hosts")
        found = [attempt(look) for look in (self._of_files, self._room)]
        (files, _), (room, _) = found
        mine = facts.of_host(self.run) | (files or {})
        said = distributed.exchange("facts", [facts.host_name(), mine, room])
        self._names = {i: f"process {i} of {len(said)} ({name})" for i, (name, *_) in said.items()}
        clocks = clock_offsets()
        problems = distributed.exchange("problems", [sentence for _, wrong in found for sentence in wrong])
        for process, sentences in differences({i: values for i, (_, values, _) in said.items()}).items():
            problems[process] += sentences
        for process, offset in clocks.items():
            if abs(offset) > CLOCK_SECONDS:
                problems[process].append(
                    f"its clock is {offset:+.1f} s off the others', and {CLOCK_SECONDS:g} s are allowed: times of files "
                    "and logs mislead; synchronise it (NTP)"
                )
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
        self.mesh, wrong = attempt(lambda: sharding.make_mesh(**vars(self.run.config.mesh)))
        self._end_if_wrong(distributed.exchange("mesh", wrong))
        order = [[device.id, device.process_index] for device in self.mesh.devices.flat]
        self._end_if_differing("the order of the mesh's devices", facts.digest(order))
        kinds = Counter(device.device_kind for device in self.mesh.devices.flat)
        shape = " x ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items() if size > 1) or "one device"
        self.tell("devices", f"{' and '.join(f'{n} x {kind}' for kind, n in kinds.items())}; mesh {shape}")
        started = time.perf_counter()
        self._end_if_wrong(distributed.exchange("links", links.broken(self.mesh)))
        axes = ", ".join(axis for axis, size in self.mesh.shape.items() if size > 1) or "none to try"
        self.tell("links", f"{axes}: sums and gathers are right, {time.perf_counter() - started:.1f} s with compiling")

    def data(self, stage: str) -> None:
        """Each host loads its rows of the next batch of a stage."""
        watchdog.begin(f"the check of the data of {stage}")
        found, wrong = attempt(lambda: rehearsal.first_batch(self.run, stage, self.mesh))
        self._end_if_wrong(distributed.exchange(f"data of {stage}", found.problems if found else wrong))
        self._end_if_differing(f"the examples of the next batch of {stage}", facts.digest(found.ids))
        said = distributed.exchange(f"time for {stage}", found.seconds)
        slowest = max(said, key=said.get)
        rate = len(found.rows) / said[slowest]
        rows = sharding.host_rows(self.mesh, found.size)
        shares = "; ".join(f"process {i} rows {_ranges(held)}" for i, held in rows.items())
        self.tell("data", f"{stage}, step {found.step + 1}, batch of {found.size}: {shares}")
        self.tell(
            "", f"the slowest host ({self._names[slowest]}) loads its share at {rate:.2f} examples/s, with starting"
        )
        if stage == self.stages[0]:
            self._batch = found

    def step(self, stage: str) -> None:
        """The real program with random weights: compiled, run, and its state written, read and compared."""
        size = rehearsal.state_bytes(self.run, stage, self.mesh)
        kept = getattr(self.run.config, stage).keep + 1
        short = self._free < kept * size
        needed = f"{kept} checkpoints of {size / GB:.3f} GB ({stage}: keep {kept - 1}, and one being written)"
        self._end_if_wrong(
            distributed.exchange(
                "space", [f"{self.run.workdir} has {self._free / GB:.3f} GB free, and needs {needed}"] if short else []
            )
        )
        watchdog.begin(f"compiling the step of {stage}")
        with jax.set_mesh(self.mesh):
            taken = rehearsal.take_step(self.run, stage, self.mesh, self._batch)
            self._end_if_wrong(
                distributed.exchange(
                    "loss", [] if math.isfinite(taken.loss) else [f"the loss of {stage} is {taken.loss}"]
                )
            )
            self._end_if_differing(f"the loss of {stage}", taken.loss.hex())
            self.tell(
                "step", f"{stage}: compiled in {taken.compiling:.1f} s, {taken.seconds:.2f} s a step, loss finite"
            )
            watchdog.begin("the check of the checkpoint")
            trip = rehearsal.round_trip(taken.state, self.folder / "checkpoint")
        self._end_if_wrong(distributed.exchange("checkpoint", trip.problems))
        self.tell(
            "checkpoint",
            f"{trip.bytes / GB:.3f} GB written in {trip.writing:.1f} s ({trip.bytes / GB / trip.writing:.3f} GB/s), read in "
            f"{trip.reading:.1f} s ({trip.bytes / GB / trip.reading:.3f} GB/s), the same bits; room for {needed}",
        )

    def _of_files(self) -> dict[str, Any]:
        """Data and weights as this host sees them."""
        self.run.refuse_another()
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
        finally:
            probe.unlink(missing_ok=True)
        temporary = shutil.disk_usage(tempfile.gettempdir()).free
        if temporary < TEMPORARY_BYTES:
            raise InputError(
                f"{tempfile.gettempdir()} has {temporary / GB:.2f} GB free for temporary files; "
                f"{TEMPORARY_BYTES / GB:.2f} GB are needed"
            )
        return shutil.disk_usage(self.folder).free, temporary

    def _end_if_wrong(self, problems: Mapping[int, Sequence[str]]) -> None:
        """Raises InputError in all processes, a line for each process that has a problem."""
        if lines := [f"{self._names[i]}: {'; '.join(each)}" for i, each in sorted(problems.items()) if each]:
            raise InputError("the check found\n  " + "\n  ".join(lines))

    def _end_if_differing(self, what: str, value: Any) -> None:
        said = distributed.exchange(what, value)
        self._end_if_wrong(differences({i: {what: each} for i, each in said.items()}))


def attempt(action: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What an action returns, or what is wrong where it cannot: nothing it does may wait for other processes."""
    try:
        return action(), []
    except InputError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"{error.filename or 'the disk'}: {error.strerror}"]


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
    try:
        yield folder if distributed.becomes_visible(folder) else None
    finally:
        # The others have let go of it, or have ended.
        with contextlib.suppress(RuntimeError):
            distributed.meet("the check is over", seconds=60)
        if distributed.is_first():
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                for path in made:
                    path.rmdir()


def _ranges(rows: Sequence[int]) -> str:
    """Rows in few words: 0-3, 8."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1][1] = row
        else:
            runs.append([row, row])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
