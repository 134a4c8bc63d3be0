"""One damaged file after another: what opens it takes it or refuses it in one sentence, and leaves nothing behind.

As a program, tries more of them than the suite does, and prints how they ended:

    PYTHONPATH=.:tests:tests/data:tests/training python tests/fuzz/trying.py [EACH]
"""

import collections
import faulthandler
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from cinema_jax.errors import InputError
from fuzz.mutations import mutated
from fuzz.targets import NOT_OPENED, TARGETS, Target

# Seconds of this process in which anything must be refused. What waits for ever ends by the time limit of tests.
PATIENCE = 20.0


class Seeds:
    """Good files of a target, made once."""

    def __init__(self, target: Target, folder: Path):
        self.target, self._good, self._tried = target, folder / "good", folder / "tried"
        self._good.mkdir(parents=True)
        target.make(self._good)
        found = {file for pattern in target.files for file in self._good.glob(pattern) if file.is_file()}
        self._files = sorted(file for file in found if not any(map(file.match, NOT_OPENED)))

    def check(self) -> None:
        """What is good is taken."""
        self.target.use(self._copy())

    def _copy(self) -> Path:
        shutil.rmtree(self._tried, ignore_errors=True)
        shutil.copytree(self._good, self._tried)
        return self._tried

    def attempt(self, number: int) -> str:
        """Try variant `number`: "taken", or the sentence in which it is refused; raises whatever else comes of it."""
        rng = random.Random(f"{self.target.name} {number}")
        file = rng.choice(self._files)
        damaged = self._copy() / file.relative_to(self._good)
        damaged.write_bytes(mutated(file.name, file.read_bytes(), rng))
        begun = time.process_time()
        try:
            self.target.use(self._tried)
            said = "taken"
        except InputError as error:
            said = str(error)
            assert 0 < len(said.strip()) < 20_000, "no sentence"
            assert "Traceback" not in said
        took = time.process_time() - begun
        assert took < PATIENCE, f"{file.name}: it took {took:.0f} s"
        left = [each for each in self._tried.rglob("*") if each.name.endswith((".partial", ".cinema_jax"))]
        assert not left, f"{file.name}: {left[0]} is left"
        return said


def main(each: int) -> None:
    """Try so many variants of each kind, or more, as its share says, and print a row of figures for it."""
    ended: collections.Counter[str] = collections.Counter()
    print("| files | variants | taken | refused | stack traces | longest, s |\n|---|---|---|---|---|---|")
    for target in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            seeds, counts, longest = Seeds(target, Path(folder)), collections.Counter(), 0.0
            seeds.check()
            for number in range(round(each * target.share)):
                faulthandler.dump_traceback_later(5 * PATIENCE, exit=True)
                begun = time.monotonic()
                try:
                    kind = "taken" if seeds.attempt(number) == "taken" else "refused"
                except Exception:
                    kind = "trace"
                    print(f"{target.name} {number}", traceback.format_exc(), file=sys.stderr)
                counts[kind] += 1
                longest = max(longest, time.monotonic() - begun)
        ended += counts
        print(_row(target.name, counts, f"{longest:.1f}"), flush=True)
    print(_row("all", ended, ""))


def _row(name: str, ended: collections.Counter[str], longest: str) -> str:
    cells = [name, ended.total(), ended["taken"], ended["refused"], ended["trace"], longest]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
