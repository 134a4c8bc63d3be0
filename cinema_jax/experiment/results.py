"""What a stage has made: it lies aside until the stage's record exists, and is the run's own from then on.

1. `stages/<stage>.parts/<part>/` is written, anew as often as the end of the stage is repeated.
2. `stages/<stage>.json`, the record, is written: from here on the stage is finished.
3. `parts/<part>/` gets what lies aside, file by file.

A run that is killed before the second step repeats the end of its stage, with the same frozen tensors that it began
with; killed after it, the next start of the run takes the third step.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cinema_jax.errors import InputError
from cinema_jax.experiment.checkpoint import digest
from cinema_jax.inputs.files import read_json
from cinema_jax.inputs.typed import checked

# Of a stage's record, what is read again: where its parts came from, and digests of what it read and wrote.
_RECORD = dict.fromkeys(("parts", "digests", "written"), dict[str, str])


def aside(workdir: Path, stage: str) -> Path:
    """Where a stage's parts lie before its record is written."""
    return workdir / "stages" / f"{stage}.parts"


def clear(folder: Path) -> None:
    """Empty it of what an end of the stage left there that was not completed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def unsettled(workdir: Path) -> list[str]:
    """The finished stages of which something lies aside still: the run was killed in between."""
    records = sorted((workdir / "stages").glob("*.json"))
    return [record.stem for record in records if aside(workdir, record.stem).is_dir()]


def settle(workdir: Path) -> None:
    """Move what finished stages have made to `parts/`. May be interrupted, and called again, at any moment."""
    for stage in unsettled(workdir):
        for part in sorted(aside(workdir, stage).iterdir()):
            _move(part, workdir / "parts" / part.name)
        aside(workdir, stage).rmdir()


def _move(part: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    # The config last: a folder with a config is complete.
    if (part / "config.json").exists():
        (target / "config.json").unlink(missing_ok=True)
    for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(target / file.name)
    part.rmdir()


def record(workdir: Path, stage: str) -> dict[str, Any] | None:
    """What a finished stage left behind, or None.

    Raises:
        InputError: it is damaged.
    """
    file = workdir / "stages" / f"{stage}.json"
    if not file.exists():
        return None
    found = read_json(file, finite=False)
    for name, kind in _RECORD.items():
        # Records of before do not have all of them.
        found[name] = checked(found.get(name, {}), kind, f"{file}: {name}")
    found["steps"] = checked(found.get("steps"), int, f"{file}: steps")
    return found


def check_written(
    workdir: Path, written: Mapping[str, tuple[str, str]], origins: Mapping[str, str], digests: Mapping[str, str]
) -> None:
    """Refuse parts of a run that are not what its stages have left there.

    Args:
        workdir: of the run.
        written: the stage that made each part, and the digest of what it wrote.
        origins: where the parts were read from.
        digests: of what was read.

    Raises:
        InputError: names the folder and the stage.
    """
    for name, (stage, made) in written.items():
        own = workdir / "parts" / name
        if origins.get(name) == str(own) and digests[name] != made:
            raise InputError(
                f"{own} is not what {stage} wrote there; put that back, or delete {workdir / 'stages' / stage}.json to "
                f"have {stage} write it again"
            )


def digests_of_frozen(digests: Mapping[str, str], params: Mapping[str, Any], trained: Iterable[str]) -> dict[str, str]:
    """The digest of those tensors of each part that are not trained, if any; `digests` has those of whole parts."""
    trained = set(trained)
    mixed = {path.split("/")[0] for path in trained}
    found = {name: value for name, value in digests.items() if name not in mixed}
    for name in sorted(mixed):
        frozen = {path: x for path, x in params.items() if path.startswith(f"{name}/") and path not in trained}
        if frozen:
            found[name] = digest(frozen)
    return found


def check_frozen(stage: str, saved: Mapping[str, str], frozen: Mapping[str, str], origins: Mapping[str, str]) -> None:
    """Refuse to go on with other frozen tensors than a stage began with, by the digests that its checkpoint has.

    Raises:
        InputError: names the part and where it was read from.
    """
    for name, there in saved.items():
        if there != frozen[name]:
            raise InputError(
                f"{stage} began with another {name} than lies in {origins[name]} now; put that back, or start anew in "
                "another --workdir"
            )
