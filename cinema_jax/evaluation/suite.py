"""The suite "critters": fixed prompts on drawn subjects of the test split, none of which any stage trains on; or the
same scenes with cut-out pictures.

Case, prompt, pictures and candidates follow from the suite's own seed and from nothing else: every checkpoint is asked
the same.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from cinema_jax.data.critters import grammar
from cinema_jax.data.critters.cutout import Cutout
from cinema_jax.data.critters.identity import SPECIES, Identity, draw_identity
from cinema_jax.data.critters.scene import Scene, Subject
from cinema_jax.data.critters.source import Critters, reference
from cinema_jax.data.example import Reference
from cinema_jax.errors import InputError

SEED = 1
PER_COUNT = 72  # cases of each number of subjects
COUNTS = (1, 2, 3)
CANDIDATES = 64  # the right one among them
_GALLERY = 640
_SPLIT = "test"


@dataclasses.dataclass(frozen=True)
class Case:
    """One prompt with its references, and what it asks for.

    Attributes:
        index: of the scene that it describes, in the suite's `Critters`.
        vague: whether the prompt does not name its subjects; the order of the references then tells who is who.
        references: in the order of the roles in the scene's story, one for each actor.
        order: in which the references are given to the model.
        others: rows of the gallery that `identity` compares each subject with, [K, CANDIDATES - 1].
    """

    id: str
    index: int
    scene: Scene
    prompt: str
    vague: bool
    references: tuple[Reference, ...]
    order: tuple[int, ...]
    others: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Number of subjects."""
        return len(self.references)

    @property
    def shown(self) -> tuple[Reference, ...]:
        """The references as the model gets them."""
        return tuple(self.references[number] for number in self.order)


class Suite:
    """The cases for videos of one size.

    Args:
        frames, height, width: of the videos; the same cases at any size.
        per_count: cases of each number of subjects.
        counts: numbers of subjects.
        cutouts: pictures that play instead of critters; each is told from all the others, or from 63 of them.
        others: pictures that do not play, but are among those that each is told from.

    Raises:
        InputError: the pictures are too few to tell one from others.
    """

    def __init__(
        self,
        frames: int,
        height: int,
        width: int,
        *,
        per_count: int = PER_COUNT,
        counts: tuple[int, ...] = COUNTS,
        cutouts: Sequence[Cutout] | None = None,
        others: Sequence[Cutout] = (),
    ):
        if cutouts is not None and len(cutouts) + len(others) < 2 * max(COUNTS):
            there = len(cutouts) + len(others)
            raise InputError(f"there are {there} cut-out pictures; the suite needs at least {2 * max(COUNTS)}")
        self.source = Critters(
            _SPLIT, frames=frames, height=height, width=width, seed=SEED, max_subjects=max(COUNTS), cutouts=cutouts
        )
        drawn = [draw_identity(number, _SPLIT, SPECIES[number % len(SPECIES)]) for number in range(_GALLERY)]
        self._gallery: Sequence[Subject] = drawn if cutouts is None else [*cutouts, *others]
        self.cases = self._cases(per_count, counts)

    @property
    def candidates(self) -> int:
        """How many a subject is found among, itself included."""
        return 1 + len(self.cases[0].others[0])

    @cached_property
    def gallery(self) -> list[Reference]:
        """A reference picture of each of those that are no subject of a case: the candidates."""
        return [
            reference(subject, np.random.default_rng([SEED, 1, number])) for number, subject in enumerate(self._gallery)
        ]

    def real(self, case: Case) -> UInt8[np.ndarray, "frames height width 3"]:
        """The drawn video of the case."""
        return self.source.video(case.index)

    def _cases(self, per_count: int, counts: tuple[int, ...]) -> list[Case]:
        found: dict[int, list[Case]] = {count: [] for count in counts}
        for index in range(len(self.source)):
            if all(len(cases) == per_count for cases in found.values()):
                break
            scene = self.source.scene(index)
            cases = found.get(len(scene.actors), [])
            if len(scene.actors) in found and len(cases) < per_count:
                cases.append(self._case(index, scene, len(cases)))
        return [case for count in counts for case in found[count]]

    def _case(self, index: int, scene: Scene, number: int) -> Case:
        rng = np.random.default_rng([SEED, 0, index])
        conditions = self.source.conditions(index, rng)
        # Subjects of one scene are of different species, so their keys differ.
        by_key = {picture.subject: picture for picture in conditions.references}
        keys = [actor.subject.key for actor in scene.actors]
        return Case(
            id=f"k{len(keys)}-{number:03d}",
            index=index,
            scene=scene,
            prompt=conditions.prompt,
            vague=not grammar.tells_who(conditions.prompt, scene.story()),
            references=tuple(by_key[key] for key in keys),
            order=tuple(keys.index(picture.subject) for picture in conditions.references),
            others=tuple(self._others(number, scene, rng) for number in range(len(keys))),
        )

    def _others(self, number: int, scene: Scene, rng: np.random.Generator) -> tuple[int, ...]:
        """Of critters a third of the species, a third of the body's colour, the rest anybody; of pictures anybody.

        All come from the grammar and the split of the subject itself, so nothing but its looks tells it from them. Left
        out are those with the body of a subject of the video: who differs in a hat alone is hard to tell at 64 pixels,
        and who is like another subject is seen.
        """
        subject = scene.actors[number].subject
        seen = [_body(actor.subject) for actor in scene.actors]
        free = [row for row, other in enumerate(self._gallery) if _body(other) not in seen]
        if isinstance(subject, Cutout):
            # As many for scenes of one subject as for those of three.
            count = min(CANDIDATES - 1, len(self._gallery) - max(COUNTS))
            return tuple(free[i] for i in rng.permutation(len(free))[:count])
        species = [row for row in free if self._gallery[row].attributes()["species"] == subject.species]
        color = [row for row in free if self._gallery[row].color == subject.color and row not in species]
        chosen: list[int] = []
        for pool, upto in ((species, 21), (color, 42), (free, CANDIDATES - 1)):
            left = [row for row in pool if row not in chosen]
            chosen += [left[i] for i in rng.permutation(len(left))[: upto - len(chosen)]]
        return tuple(chosen)


def _body(subject: Subject) -> tuple[str, ...]:
    """All that can be named of a critter but what is on the head."""
    if isinstance(subject, Identity):
        return subject.species, subject.color, subject.accent, subject.pattern
    return (subject.key,)
