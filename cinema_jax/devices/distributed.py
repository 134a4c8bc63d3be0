"""One run on many hosts: how the processes find each other, agree, and leave.

`start` must run before anything asks jax for its devices. A process that is alone starts nothing and waits for nothing;
everything else here is then free of charge.
"""

import functools
import glob
import hashlib
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cinema_jax.errors import InputError

# Environment variables that stand for the flags of the same meaning.
ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# What libtpu asks the metadata server of a TPU VM for.
NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
# After so long without a sign of life of its machine a process is taken for dead, and jax ends the others.
HEARTBEAT_SECONDS = 100
# The first process holds the others' meeting place: when it ends early it lets them end first, for so long.
LINGER_SECONDS = 10
# A file that one host wrote may take so long to show on another, through the caches of a network's file system.
VISIBLE_SECONDS = 60
# For what others compile or read meanwhile; those that have died are noticed by other means.
EXCHANGE_SECONDS = 3600


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_seconds: int = 300,
) -> None:
    """Join the other processes of the run where flags or the environment speak of any.

    Args:
        coordinator: host:port of process 0; default `JAX_COORDINATOR_ADDRESS`.
        num_processes: how many there are; default `JAX_NUM_PROCESSES`.
        process_id: which one this is, from 0; default `JAX_PROCESS_ID`.
        start_seconds: the process ends, with a sentence and status 1, where not all have met after so long.

    Raises:
        InputError: some of the three are missing, or one is out of range.
    """
    told = _explicit({"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id})
    if told is None and not _in_cluster():
        return
    # Imported here: most commands are alone, and refuse bad input before slow libraries are loaded.
    import jax

    # Its handler of SIGTERM would take the place of ours, which lets the processes agree on a step themselves.
    jax.config.update("jax_enable_preemption_service", False)
    where = (
        f"{told['coordinator']} (process {told['process_id']} of {told['num_processes']})" if told else "the cluster"
    )
    sentence = (
        f"error: not all processes have met at {where} within {start_seconds} s; raise --start_seconds to wait on"
    )
    # Beyond its own limit jax aborts with a stack of C++.
    timer = threading.Timer(start_seconds, lambda: (print(sentence, file=sys.stderr, flush=True), os._exit(1)))
    timer.daemon = True
    timer.start()
    arguments = (told["coordinator"], told["num_processes"], told["process_id"]) if told else ()
    jax.distributed.initialize(
        *arguments, initialization_timeout=start_seconds + 60, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
    timer.cancel()
    # The devices, while all processes are there: looking for them later may wait for one that is lost.
    jax.process_count()


def _explicit(flags: dict[str, Any]) -> dict[str, Any] | None:
    """The three flags, from the command line or the environment; None where nobody speaks of them."""
    told = {name: os.environ.get(ENVIRONMENT[name]) if value is None else value for name, value in flags.items()}
    given = [name for name, value in told.items() if value is not None]
    # A launcher may name the coordinator alone, and leave the rest to the cluster.
    if not given or (given == ["coordinator"] and flags["coordinator"] is None and _in_cluster()):
        return None
    if missing := [f"--{name} (or {ENVIRONMENT[name]})" for name in told if name not in given]:
        there = " and ".join(f"--{name}" for name in given)
        raise InputError(f"{there} without {' and '.join(missing)}: several processes need all three, one needs none")
    for name in ("num_processes", "process_id"):
        if not str(told[name]).lstrip("-").isdecimal():
            raise InputError(f"{ENVIRONMENT[name]} is {told[name]!r}; it must be a whole number")
        told[name] = int(told[name])
    count, index = told["num_processes"], told["process_id"]
    if count < 1:
        raise InputError(f"--num_processes is {count}; it must be 1 or more")
    if not 0 <= index < count:
        raise InputError(f"--process_id is {index}; with --num_processes={count} it must be from 0 to {count - 1}")
    host, colon, port = told["coordinator"].rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator is {told['coordinator']!r}; it must be host:port, for example 10.0.0.1:8476")
    return told


def _in_cluster() -> bool:
    """Whether the environment speaks of several processes in a way that jax reads itself."""
    said = os.environ
    if all(f"SLURM_{name}" in said for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")):
        return int(said["SLURM_NTASKS"]) > 1
    if "OMPI_MCA_orte_hnp_uri" in said:
        return int(said.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    if "tpu" not in (said.get("JAX_PLATFORMS") or "tpu") or not _has_tpu():
        return False
    if int(said.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    workers = said.get("TPU_PROCESS_ADDRESSES") or said.get("TPU_WORKER_HOSTNAMES")
    # Without names it is a TPU VM, whose metadata server jax asks.
    return "," in workers if workers else "TPU_SKIP_MDS_QUERY" not in said


def _has_tpu() -> bool:
    """Whether chips are here and the library that drives them: planning needs the library alone."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")) and bool(importlib.util.find_spec("libtpu"))


def quiet_without_tpu() -> None:
    """Keep libtpu, where it is installed without a TPU, from printing that it has found none; before it is loaded."""
    if not _has_tpu():
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)


def leave(status: int, others_left: Callable[[], bool] = lambda: False) -> NoReturn:
    """End this process, one of several, whatever the others do. Where it is the first, a little later than the rest.

    Args:
        others_left: whether the first one need not wait any longer.
    """
    import jax

    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        deadline = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < deadline and not others_left():
            time.sleep(0.2)
    # Python's own way out would wait for processes that may be gone.
    os._exit(status)


def several() -> bool:
    """Whether this process is one of several. Does not touch the devices of one that is alone."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes what only one may write."""
    return not several() or sys.modules["jax"].process_index() == 0


def name() -> str:
    """This process, for messages: `process 3 of 16 (host-3)`."""
    import jax

    return f"process {jax.process_index()} of {jax.process_count()} ({socket.gethostname()})"


def store() -> Any:
    """jax's key-value store, which process 0 holds: there processes reach each other without their devices.

    jax has no public name for it. None where it is not as in jax 0.10: then nothing is told there, and nothing heard.
    """
    try:
        from jax._src.distributed import global_state
    except ImportError:
        return None
    client = getattr(global_state, "client", None)
    needed = ("key_value_set", "key_value_dir_get", "blocking_key_value_get", "wait_at_barrier")
    return client if all(hasattr(client, name) for name in needed) else None


def coordinator_refuses() -> bool:
    """Whether nobody listens any more where process 0 should; False where that cannot be told within a second."""
    from jax._src.distributed import global_state

    host, _, port = global_state.coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def put(key: str, value: Any) -> None:
    """Leave something that JSON can say in the store. Raises RuntimeError where process 0 cannot be reached."""
    store().key_value_set(f"cinema_jax/{key}", json.dumps(value), allow_overwrite=True)


def told(folder: str) -> dict[int, Any]:
    """What each process has left in the store as `folder/<process>`, by its number; raises like `put`."""
    found = store().key_value_dir_get(f"cinema_jax/{folder}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def exchange(what: str, value: Any) -> dict[int, Any]:
    """What each process says, by its number, through the store: also of processes that could not compute together.

    All must call this, once for each `what`, with anything that JSON can say.
    """
    if not several() or store() is None:
        return dict(enumerate(gather(value)))
    import jax

    put(f"{what}/{jax.process_index()}", value)
    keys = {i: f"cinema_jax/{what}/{i}" for i in range(jax.process_count())}
    return {i: json.loads(store().blocking_key_value_get(key, EXCHANGE_SECONDS * 1000)) for i, key in keys.items()}


def meet(what: str, seconds: int = EXCHANGE_SECONDS) -> None:
    """Wait until all processes are here, without their devices, once for each `what`; RuntimeError after so long."""
    if several() and store() is not None:
        store().wait_at_barrier(f"cinema_jax/{what}", seconds * 1000)
    else:
        together(what)


def together(what: str) -> None:
    """Wait until all processes are here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"cinema_jax.{what}")


def gather(value: Any) -> list[Any]:
    """What each process says, in their order: anything that JSON can say. All must call this."""
    if not several():
        return [value]
    from jax.experimental import multihost_utils

    # With its index: that jax puts the processes in their order is only jax's habit.
    text = np.frombuffer(json.dumps([sys.modules["jax"].process_index(), value]).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    # Powers of two: each length is a program of its own to the compiler.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    said = dict(json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True))
    return [said[index] for index in sorted(said)]


def agree(what: str, value: Any) -> None:
    """Raises InputError in all processes where they differ in `value` (anything that JSON can say)."""
    if not several():
        return
    said = gather([hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest(), name()])
    if other := [name for digest, name in said if digest != said[0][0]]:
        raise InputError(
            f"{', '.join(other)} and process 0 differ in {what}: start all with the same command, code and data"
        )


def in_first(action: Callable[[], Any]) -> None:
    """Do something in the first process alone, while the others wait; its InputError is raised in all."""
    problem = None
    if is_first():
        try:
            action()
        except InputError as error:
            problem = str(error)
    if found := next((said for said in gather(problem) if said is not None), None):
        raise InputError(found)


def check_shared(folder: Path, flag: str = "--workdir") -> None:
    """Raises InputError in all processes where they do not all see the same `folder`, which `flag` names."""
    if not several():
        return
    token = gather(time.time_ns())[0]
    file = folder / f"shared-{token}"
    in_first(file.touch)
    blind = [index for index, sees in enumerate(gather(becomes_visible(file))) if not sees]
    in_first(file.unlink)
    if blind:
        raise InputError(
            f"processes {', '.join(map(str, blind))} do not see the {folder} of process 0: {flag} must lie on a "
            "file system that all hosts share"
        )


def becomes_visible(file: Path) -> bool:
    """Whether a file or folder that another process has made shows here, too, soon enough."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not (seen := file.exists()) and time.monotonic() < deadline:
        time.sleep(1)
    return seen


def largest(value: int) -> Any:
    """The largest of what all processes say, as an array of jax that nobody has waited for. All must call this."""
    import jax

    mesh, take = _maximum()
    pieces = [jax.device_put(np.int32([value]), device) for device in jax.local_devices()]
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("device"))
    # The run's own mesh has the same devices in another order, which jax refuses to mix.
    with jax.set_mesh(mesh):
        return take(jax.make_array_from_single_device_arrays((mesh.size,), sharding, pieces))


def fetch(array: Any) -> np.ndarray:
    """All of an array in the memory of every process, which all must ask for together."""
    import jax

    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(_replicate(array.sharding.mesh)(array).addressable_data(0))


def fetch_row(array: Any, index: tuple[int, ...]) -> np.ndarray:
    """The same of `array[index]`, without moving the rest."""
    row = _row(array.sharding.mesh)(array, *index)
    return np.asarray(row.addressable_data(0))


@functools.cache
def _maximum() -> tuple[Any, Callable[[Any], Any]]:
    import jax

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "device")
    return mesh, jax.jit(jax.numpy.max, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


@functools.lru_cache
def _replicate(mesh: Any) -> Callable[[Any], Any]:
    import jax

    return jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


@functools.lru_cache
def _row(mesh: Any) -> Callable[..., Any]:
    import jax

    return jax.jit(lambda x, *i: x[i], out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
