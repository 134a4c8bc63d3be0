"""One process of several that save two checkpoints, of which the second is damaged, and go on from what is left:

python restored.py FOLDER --coordinator=... --num_processes=... --process_id=...

The last line that each prints: the step that it was given, by the state and by its description, the one that weights
are read of before and after the damaged one is saved anew, and whether its values are those that were saved.
"""

import sys
from pathlib import Path

from cinema_jax.commands import command


def damage(step: Path) -> None:
    """Lose the second half of every file of arrays, as a disk does that loses power."""
    for file in step.rglob("d/*"):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))


def main() -> None:
    """Save, damage, restore."""
    command.start_processes()
    import jax
    import numpy as np

    from cinema_jax.devices import distributed
    from cinema_jax.experiment.checkpoint import Checkpoints, newest_params
    from cinema_jax.training.state import TrainState

    mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
    split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("all",), ()))

    def values(step: int) -> np.ndarray:
        return np.random.default_rng(step).standard_normal((mesh.size, 1 << 12), np.float32)

    def state(step: int) -> TrainState:
        array = jax.make_array_from_callback((mesh.size, 1 << 12), split, values(step).__getitem__)
        number = jax.make_array_from_callback((), whole, lambda _: np.int32(step))
        return TrainState(number, {"a": array}, {"a": array}, {}, number, number)

    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state(step), {"step": step})
    if jax.process_index() == 0:
        damage(folder / "2")
    distributed.together("damaged")
    weights, _ = newest_params(folder)
    with Checkpoints(folder) as checkpoints:
        restored, metadata = checkpoints.restore(state(0))
        shards = restored.params["a"].addressable_shards
        same = all(np.array_equal(shard.data, values(1)[shard.index]) for shard in shards)
        # The run comes to the damaged step again.
        checkpoints.save(state(2), {"step": 2})
    distributed.together("saved anew")
    print(int(restored.step), metadata["step"], weights, newest_params(folder)[0], same, flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    command.run(main)
