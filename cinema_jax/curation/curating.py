"""All steps in order: from video files to a folder that `config.data.source=folder` trains from."""

import dataclasses
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cinema_jax.curation import report
from cinema_jax.curation.crops import CropConfig
from cinema_jax.curation.describing import Describing, Pending
from cinema_jax.curation.duplicates import DuplicateConfig, Hashed, duplicates
from cinema_jax.curation.looking import Looking
from cinema_jax.curation.quality import QualityConfig
from cinema_jax.curation.results import Clip, Example, Rejected, Results, fewest
from cinema_jax.curation.shards import Shard, Work, divided
from cinema_jax.curation.shots import ShotConfig
from cinema_jax.curation.sources import Source
from cinema_jax.data.manifest import NAME
from cinema_jax.inputs.files import read_json, whole_file, write_json, write_text
from cinema_jax.inputs.typed import checked

MEDIA, PICTURES, WORK, REJECTED, COUNTS, REPORT = (
    "videos",
    "references",
    "work",
    "rejected.jsonl",
    "counts.json",
    "report.html",
)
# Does the shards of a step that are not done, by its name.
Run = Callable[[Work, Sequence[Shard], str], None]


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What clips must be like."""

    shots: ShotConfig = ShotConfig()
    quality: QualityConfig = QualityConfig()
    duplicates: DuplicateConfig = DuplicateConfig()
    crops: CropConfig = CropConfig()


def read_config(file: Path | None) -> CurateConfig:
    """A config from a JSON file such as `{"shots": {"longest": 6.0}}`; what it does not say is as by default.

    Raises:
        InputError: a field does not exist, or its value is not accepted.
    """
    return CurateConfig() if file is None else checked(read_json(file), CurateConfig, f"{file}: ")


def curate(
    sources: Sequence[Source], output: Path, config: CurateConfig, run: Run, shards: int, mllm: str | None = None
) -> Results:
    """Curate videos and write `output`; what was done before is not done again.

    The files that are written do not depend on how `run` shares the work out.

    Args:
        sources: the videos; the clips of one have its caption.
        run: does shards.
        shards: how many pieces the work is divided into, at most.
        mllm: the multimodal LLM that writes captions, where there are none, and finds subjects; None: nobody does.
    """
    looking = Looking(config.shots, config.quality, need_caption=mllm is None)
    found = _done(looking, divided(output / WORK, "look", looking, sources, shards), run)
    by_name = {source.name: source for source in sources}
    found += _without_duplicates(found, config.duplicates)
    if mllm is None:
        found.clips = [_captioned(clip, by_name[clip.video]) for clip in found.clips]
    elif found.clips:
        describing = Describing(config.crops, mllm, str(output), PICTURES)
        pending = _pending(found.clips, by_name)
        found.clips = []
        found += _done(describing, divided(output / WORK, "describe", describing, pending, shards), run)
    _write(output, found.in_order(), by_name)
    return found


def _done(work: Work, shards: list[Shard], run: Run) -> Results:
    run(work, shards, Path(shards[0].file).parent.name)
    results = Results()
    for shard in shards:
        results += shard.results()
    results.examples = fewest(results.examples)
    return results.in_order()


def _captioned(clip: Clip, source: Source) -> Clip:
    return dataclasses.replace(clip, caption=source.caption, prompt=source.prompt)


def _pending(clips: Sequence[Clip], sources: dict[str, Source]) -> list[Pending]:
    groups = itertools.groupby(sorted(clips, key=lambda clip: (clip.video, clip.start)), key=lambda clip: clip.video)
    return [Pending(sources[name], tuple(own)) for name, own in groups]


def _without_duplicates(found: Results, config: DuplicateConfig) -> Results:
    """Takes clips that are there twice out of the results; returns why."""
    gone = duplicates((Hashed(clip.id, clip.hash, clip.height * clip.width) for clip in found.clips), config)
    found.clips = [clip for clip in found.clips if clip.id not in gone]
    rejected = [Rejected(name, "duplicates", "shown before", f"as {other}") for name, other in sorted(gone.items())]
    pictures = {one.id: one.picture for one in found.examples if one.reason == "kept"}
    shown = [Example(**dataclasses.asdict(one), picture=pictures[one.id]) for one in rejected if one.id in pictures]
    return Results(rejected=rejected, examples=shown)


def _write(output: Path, found: Results, sources: dict[str, Source]) -> None:
    """The manifest last: it is there when all that it names is."""
    for name in sorted({clip.video for clip in found.clips}):
        _place(sources[name], output / MEDIA / name)
    counts = _counts(found, len(sources))
    _write_lines(output / REJECTED, [dataclasses.asdict(one) for one in found.rejected])
    write_json(output / COUNTS, counts)
    write_text(output / REPORT, report.page(counts, found.examples))
    _write_lines(output / NAME, [clip.line(f"{MEDIA}/{clip.video}") for clip in found.clips])


def _write_lines(file: Path, lines: Sequence[dict]) -> None:
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _place(source: Source, file: Path) -> None:
    """Puts a video into the output: without using room where the file system can, else as a copy."""
    if file.is_file() and (file.stat().st_size, file.stat().st_mtime_ns) == (source.size, source.changed):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        partial.unlink()
        try:
            os.link(os.path.realpath(source.path), partial)
        except OSError:
            shutil.copy2(source.path, partial)


def _counts(found: Results, videos: int) -> dict:
    rejected = Counter((one.step, one.reason) for one in found.rejected)
    steps: dict[str, dict[str, int]] = {}
    for (step, reason), count in sorted(rejected.items()):
        steps.setdefault(step, {})[reason] = count
    return {
        "videos": videos,
        "videos in the manifest": len({clip.video for clip in found.clips}),
        "clips": len(found.clips),
        "seconds": round(sum(clip.span.seconds for clip in found.clips), 3),
        "rejected": steps,
    }
