"""What a run asks of its hosts, as text."""

from cinema_jax.planning.hosts import Hosts, Range


def table(asked: Hosts) -> str:
    """For people."""
    loading, storage = asked.loading, asked.storage
    mesh = " x ".join(f"{axis} {size}" for axis, size in asked.mesh.items())
    read = ", ".join(f"{name} {_size(size)}" for name, size in loading.read_mib.items()) or "nothing"
    lines = [
        f"hosts of {asked.topology}: {asked.hosts} of {asked.chips_per_host} chips, mesh {mesh}",
        f"  {asked.stage}: each loads {_range(loading.rows)} of {asked.batch} rows, each row is loaded by "
        f"{_range(loading.loaded)}; rows are not neighbours on {loading.scattered} hosts",
        f"  a step takes at least {loading.step_s:.3g} s ({loading.step_bound}): up to "
        f"{loading.examples_per_second:.3g} examples/s a host, of {loading.example_mib:.1f} MiB",
        f"  read for each ({loading.source}): {read}; {loading.read_mb_per_second:.3g} MB/s a host",
        *_memory_table(asked),
        f"  a checkpoint: {storage.total_gib:.1f} GiB, {_range(storage.checkpoint_gib, '.2f')} a host: "
        f"{storage.checkpoint_s:.1f} s at {storage.gb_per_second:g} GB/s a host; restored: "
        f"{_range(storage.restore_gib, '.2f')} GiB, {storage.restore_s:.1f} s",
        f"  weights, which every host reads when a stage starts: {storage.weights_gib:.1f} GiB in bf16, "
        f"{storage.weights_s:.0f} s",
        *(f"  note: {note}" for note in asked.notes),
    ]
    return "\n".join(lines)


def _memory_table(asked: Hosts) -> list[str]:
    memory = asked.memory
    limit = "an unknown number of" if memory.limit_gib is None else f"{memory.limit_gib:.1f}"
    more = " a host" if asked.fits else " a host, which is MORE than there is"
    rows = [("at the start", name, size) for name, size in memory.start_gib.items()]
    rows += [("training", name, size) for name, size in memory.run_gib.items()]
    if memory.latents_gib != 0:
        rows.append(("page cache", "the file of encoded videos, if there is room", memory.latents_gib))
    return [
        f"  memory: {memory.most_gib:.2f} of {limit} GiB{more}; Python, its libraries and the compiler not counted",
        *(f"    {when:<13} {name:<44} {'unknown' if x is None else f'{x:8.2f} GiB'}" for when, name, x in rows),
    ]


def _range(pair: Range | tuple[int, int], form: str = "d") -> str:
    least, most = (format(x, form) for x in pair)
    return least if least == most else f"{least} to {most}"


def _size(mib: float | None) -> str:
    return "of unknown size" if mib is None else f"{mib:.2f} MiB"
