"""All figures of the suite: generated, real and reconstructed videos, and each against wrong references for chance."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from cinema_jax.evaluation.figures import Figure, figure, proportion
from cinema_jax.evaluation.judging import Eyes
from cinema_jax.evaluation.large import Metric
from cinema_jax.evaluation.measures import Measured, Names, Sums, consistency, measure
from cinema_jax.evaluation.suite import Case, Suite
from cinema_jax.evaluation.videos import Video

# Which cases each column of a report is about.
GROUPS: dict[str, Callable[[Case], bool]] = {
    "all": lambda case: True,
    "k1": lambda case: case.count == 1,
    "k2": lambda case: case.count == 2,
    "k3": lambda case: case.count == 3,
    "precise": lambda case: not case.vague,
    "vague": lambda case: case.vague,
}


# Measures that count answers of yes or no.
PROPORTIONS = ("identity", "strangers", "binding", "action", "direction", "place")


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured of one kind of videos.

    `own` and `shuffled` hold the sums of each case, against its own references and prompt and against another's.
    """

    own: list[Sums]
    shuffled: list[Sums]


def read_names(eyes: Eyes, suite: Suite) -> Names:
    """The embeddings of all reference pictures of a suite."""
    pictures = [picture for case in suite.cases for picture in case.references]
    together = eyes.names([*pictures, *suite.gallery])
    ends = np.cumsum([case.count for case in suite.cases])
    rows = np.split(together[: len(pictures)], ends[:-1])
    return Names({case.id: row for case, row in zip(suite.cases, rows, strict=True)}, together[len(pictures) :])


def partners(cases: Sequence[Case]) -> list[int]:
    """For each case another one with as many subjects."""
    found = list(range(len(cases)))
    for count in {case.count for case in cases}:
        rows = [row for row, case in enumerate(cases) if case.count == count]
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
            found[row] = other
    return found


def judge(
    eyes: Eyes,
    names: Names,
    cases: Sequence[Case],
    videos: Sequence[Video],
    what: str,
    metrics: Sequence[Metric] = (),
) -> Result:
    """Measure one video of each case, by the judge and by `metrics`; `what` names them on the progress bar."""
    others = partners(cases)
    own: list[Measured] = []
    wrong: list[Measured] = []
    for case, other, video in zip(cases, others, tqdm(videos, desc=f"judge {what}", unit="video"), strict=True):
        look = eyes.look(video)
        for measured, asked in ((own, case), (wrong, cases[other])):
            found = measure(eyes, names, asked, video, look)
            for metric in metrics:
                found.sums.update(metric(asked.prompt, asked.references, video))
            measured.append(found)
    return Result(
        [m.sums | {"consistency": consistency(m, m)} for m in own],
        [m.sums | {"consistency": consistency(own[row], own[others[row]])} for row, m in enumerate(wrong)],
    )


def figures(cases: Sequence[Case], results: dict[str, Result]) -> dict[str, dict[str, dict[str, Figure | None]]]:
    """{measure: {kind of videos: {group of cases: figure}}}; "real" against wrong references is "real_shuffled"."""
    columns = {}
    for name, result in results.items():
        columns[name], columns[f"{name}_shuffled"] = result.own, result.shuffled
    groups = {name: [row for row, case in enumerate(cases) if holds(case)] for name, holds in GROUPS.items()}
    return {
        measure_name: {
            column: {
                group: (proportion if measure_name in PROPORTIONS else figure)(
                    np.array([sums[row][measure_name][0] for row in rows], np.float64),
                    np.array([sums[row][measure_name][1] for row in rows], np.int64),
                )
                for group, rows in groups.items()
            }
            for column, sums in columns.items()
        }
        for measure_name in next(iter(results.values())).own[0]
    }
