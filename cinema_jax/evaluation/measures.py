"""What is measured of one video against one case: its own, or for chance another one's."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cinema_jax.evaluation import actions
from cinema_jax.evaluation.judging import Eyes, Look
from cinema_jax.evaluation.pastes import closeness
from cinema_jax.evaluation.suite import Case
from cinema_jax.evaluation.tracking import Tracked, chances, track

# Heat from which a local maximum counts as a subject that is there.
THERE = 0.3

# Name to (sum, count): what a case adds to a figure.
Sums = dict[str, tuple[float, int]]


@dataclasses.dataclass(frozen=True)
class Names:
    """The judge's embeddings of a suite's pictures."""

    references: dict[str, Float[np.ndarray, "K E"]]  # by case, in the order of the roles
    gallery: Float[np.ndarray, "N E"]

    def others(self, case: Case, subject: int) -> Float[np.ndarray, "C E"]:
        """Those whom a subject is told from."""
        return self.gallery[list(case.others[subject])]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One video against one case.

    `first` and `last` embed each subject in the first and in the last third of the frames.
    """

    sums: Sums
    first: Float[np.ndarray, "K E"]
    last: Float[np.ndarray, "K E"]


def measure(
    eyes: Eyes, names: Names, case: Case, video: UInt8[np.ndarray, "frames height width 3"], look: Look
) -> Measured:
    """Everything but what needs two videos: see docs/evaluate.md for each figure."""
    own = names.references[case.id]
    rivals = np.concatenate([names.others(case, subject) for subject in range(case.count)])
    tracked = track(look, np.concatenate([own, rivals]), case.count, eyes.scale)
    beaten = np.array([_beaten(eyes, names, case, look, subject) for subject in range(case.count)])
    sums = {
        "identity": _sum(beaten == 1),
        "pairwise": _sum(beaten),
        "strangers": _strangers(eyes, look, own, rivals),
        "present": _present(look, case.count),
        "motion": _sum(_paths(tracked)),
        "change": (float(np.abs(np.diff(video.astype(np.float32), axis=0)).mean()) / 255 if len(video) > 1 else 0.0, 1),
        "copy_paste": _sum(closeness(video, case.references)),
        **_following(case, tracked, look),
    }
    thirds = np.array_split(np.arange(len(video)), 3) if len(video) >= 3 else [np.arange(len(video))] * 3
    return Measured(sums, _mean_embedding(tracked, thirds[0]), _mean_embedding(tracked, thirds[-1]))


def consistency(begun: Measured, ended: Measured) -> tuple[float, int]:
    """How alike each subject is in the first and the last third; of two videos: of two different subjects."""
    count = min(len(begun.first), len(ended.last))
    return _sum((begun.first[:count] * ended.last[:count]).sum(axis=-1))


def _beaten(eyes: Eyes, names: Names, case: Case, look: Look, subject: int) -> float:
    """The share of the other candidates of whom less is seen in the video than of the subject's own reference.

    Every place of every frame shares its votes out among the candidates and the video's other references, which thus
    explain their own places. A candidate counts with its best place of each frame.
    """
    own = names.references[case.id]
    candidates = np.concatenate([own[subject : subject + 1], names.others(case, subject)])
    maps = chances(look, np.concatenate([candidates, np.delete(own, subject, axis=0)]), eyes.scale)
    votes = maps[..., : len(candidates)].max(axis=(1, 2)).mean(axis=0)
    return float((votes[0] > votes[1:]).mean())


def _strangers(
    eyes: Eyes, look: Look, own: Float[np.ndarray, "K E"], rivals: Float[np.ndarray, "N E"]
) -> tuple[float, int]:
    """Of all subjects detected in all frames, how many are more like one of the rivals than like any reference."""
    found = look.embeddings[_peaks(look)]
    likeness = found @ np.concatenate([own, rivals]).T
    return float((likeness.argmax(axis=-1) >= len(own)).sum()), len(found)


def _peaks(look: Look) -> tuple[np.ndarray, ...]:
    """The local maxima of the heat, three places wide: (frames, rows, columns) of everybody detected."""
    highest = np.stack([cv2.dilate(frame, np.ones((3, 3), np.uint8)) for frame in look.heat.astype(np.float32)])
    return np.nonzero((look.heat.astype(np.float32) >= highest) & (look.heat > THERE))


def _present(look: Look, count: int) -> tuple[float, int]:
    """Subjects detected in a frame over subjects asked for, in all frames."""
    return float(len(_peaks(look)[0])), count * len(look.heat)


def _paths(tracked: Tracked) -> Float[np.ndarray, "K"]:
    """How far each subject goes in the whole video, in frame heights."""
    return np.linalg.norm(np.diff(tracked.positions, axis=0), axis=-1).sum(axis=0)


def _following(case: Case, tracked: Tracked, look: Look) -> Sums:
    """Whether subjects play their own roles, do what they should, go where they should, in the place they should."""
    action, positions = case.scene.action, tracked.positions
    place = actions.place(case.prompt, case.scene.background.place)
    wanted = actions.MOTION.get(action)
    done = [] if wanted is None else np.equal(actions.motion(positions), wanted)
    return {
        "binding": _judged(actions.bound(action, positions)),
        "action": _sum(done),
        "direction": _judged(actions.direction(action, case.prompt, positions)),
        "place": _judged(None if place is None else int(look.background.argmax()) == place),
    }


def _mean_embedding(tracked: Tracked, frames: np.ndarray) -> Float[np.ndarray, "K E"]:
    mean = (tracked.embeddings[frames] * (tracked.certainty[frames, :, None] + 1e-6)).sum(axis=0)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def _sum(values: Sequence[float] | np.ndarray) -> tuple[float, int]:
    return float(np.sum(values)), len(values)


def _judged(verdict: bool | None) -> tuple[float, int]:
    return (0.0, 0) if verdict is None else (float(verdict), 1)
