"""Whether the texts that a run will read have room in its text block and in the multimodal LLM's input, and are known.

Asked before anything is encoded or trained: in the middle of a run a text that is too long would be a record that
cannot be read, and more than 1 % of these end it.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from cinema_jax.config import Config
from cinema_jax.data.captions import Captions
from cinema_jax.data.example import ClipTexts, Source
from cinema_jax.data.manifest import MAX_PROBLEMS
from cinema_jax.data.preprocessor import Preprocessor
from cinema_jax.errors import InputError
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.texts import listed
from cinema_jax.training.stages import STAGES

logger = logging.getLogger(__name__)

# Lines named in the warning of texts that are cut.
MAX_CUT = 100
# Captions measured at once.
CHUNK = 10_000

# Runs at a bucket's shapes, and what is said of the clips that belong to each.
Said = Sequence[tuple[Run, Sequence[ClipTexts]]]


@runtime_checkable
class TellsTexts(Protocol):
    """A source of clips that were made elsewhere, with what was written about them."""

    def texts(self) -> list[ClipTexts] | None:
        """Of all clips; None where that was not kept."""
        ...


class Reading(NamedTuple):
    """What some network reads of each line of a file."""

    file: str
    # The field of the file ("caption"); empty where a line is nothing else.
    name: str
    # The most tokens that there is room for, the field of the config that says so, and the bucket where that differs.
    room: int
    field: str
    bucket: str = ""


def said_of(sources: Iterable[tuple[Run, Source]]) -> Said:
    """Of the clips of each bucket, whatever their split, where their source tells (`TellsTexts`).

    A warning tells that older records do not.
    """
    found: dict[tuple[int | None, int | None], tuple[Run, list[ClipTexts]]] = {}
    silent = False
    for one, source in sources:
        if not isinstance(source, TellsTexts):
            continue
        if (texts := source.texts()) is None:
            silent = True
        else:
            found.setdefault((one.most_frames, one.bucket), (one, []))[1].extend(texts)
    if silent:
        logger.warning("an older version prepared these records: whether their texts have room is not known before")
    return list(found.values())


def check(run: Run, stages: Collection[str], clips: Said, lacking: Collection[str] = ()) -> None:
    """Refuse texts that are too long; with `config.condition.truncate` say which ones will be cut.

    Words of clips' texts that a tokenizer does not know are counted in a warning.

    Args:
        stages: those that will read them.
        clips: what is said of the clips that are read, and where; empty where there are none but captions.
        lacking: tokenizers that are not at hand ("tokenizer", "t5_tokenizer"), whose texts are not looked at.

    Raises:
        InputError: a text that is too long, with file and line, or a file that cannot be read.
    """
    # {reading: {line: tokens}}: clips that several phases read are measured by each, and told once.
    found: dict[Reading, dict[int, int]] = {}
    for reading, lengths in _all(run, stages, clips, lacking):
        found.setdefault(reading, {}).update(lengths)
    long = {key: {i: n for i, n in lengths.items() if n > key.room} for key, lengths in found.items()}
    if run.config.condition.truncate:
        for reading in filter(long.get, long):
            _warn(reading, long[reading], len(found[reading]))
        long = {}
    messages = [
        (reading.file, line, _problem(reading, line, length))
        for reading, lengths in long.items()
        for line, length in lengths.items()
    ]
    if messages:
        told = [message for *_, message in sorted(messages)]
        more = [f"... and {len(told) - MAX_PROBLEMS} more"] if len(told) > MAX_PROBLEMS else []
        raise InputError("\n".join([*told[:MAX_PROBLEMS], *more]))
    # Those that several phases read, once.
    every = {(each.file, each.line): each for _, own in clips for each in own}
    if every:
        _tell_unknown(run, stages, list(every.values()), lacking)


def _tell_unknown(run: Run, stages: Collection[str], clips: Sequence[ClipTexts], lacking: Collection[str]) -> None:
    """Warn of words that a tokenizer reads as one and the same: texts that differ in them alone are one text."""
    preprocessor = _preprocessor(run, lacking)
    captions = preprocessor.t5_tokenizer is not None and "caption" in read_by_t5(run.config, stages)
    by_mllm = run.config.condition.conditioner == "mllm"
    reader = preprocessor.processor if by_mllm else preprocessor.t5_tokenizer
    prompts = reader is not None and read_by_mllm(run.config, stages)
    for what, reads, said in (
        ("captions", preprocessor.unknown_to_t5 if captions else None, [each.caption for each in clips]),
        ("prompts", preprocessor.unknown if prompts else None, [each.prompt for each in clips]),
    ):
        unknown = [words for text in said if (words := reads(text))] if reads else []
        if unknown:
            words = dict.fromkeys(word for each in unknown for word in each)
            logger.warning(
                "%d of %d %s hold words that the tokenizer does not know and reads as one and the same: %s",
                *(len(unknown), len(said), what, listed(words)),
            )


def _problem(reading: Reading, line: int, length: int) -> str:
    name, where = f'"{reading.name}" ' if reading.name else "", f" in {reading.bucket}" if reading.bucket else ""
    return f"{reading.file}:{line}: {name}takes {length} tokens; {reading.field} has room for {reading.room}{where}"


def _warn(reading: Reading, long: Mapping[int, int], count: int) -> None:
    named = ", ".join(f"{line} ({length} tokens)" for line, length in sorted(long.items())[:MAX_CUT])
    more = f" and {len(long) - MAX_CUT} more" if len(long) > MAX_CUT else ""
    name, where = f' "{reading.name}"' if reading.name else "", f" in {reading.bucket}" if reading.bucket else ""
    logger.warning(
        *("%s: %d of %d texts%s are cut to the %d tokens of %s%s", reading.file, len(long), count, name),
        *(reading.room, reading.field, where),
    )
    logger.warning("%s: they are in lines %s%s", reading.file, named, more)


def _all(
    run: Run, stages: Collection[str], clips: Said, lacking: Collection[str]
) -> Iterator[tuple[Reading, dict[int, int]]]:
    captions = run.captions() if any(STAGES[name].captions for name in stages) else None
    # One by one: they are not asked for where there is nothing to read.
    for one, own in clips:
        by_file: dict[str, list[ClipTexts]] = {}
        for each in own:
            by_file.setdefault(each.file, []).append(each)
        for file, texts in by_file.items():
            yield from _of_clips(one, stages, file, texts, _preprocessor(one, lacking))
    if captions is not None:
        # Where there is least room.
        every = [_preprocessor(one, lacking) for one, _ in clips] or [_preprocessor(run, lacking)]
        least = min(every, key=lambda each: each.processor.max_length if each.processor else 0)
        yield from _of_captions(captions, least)


def _preprocessor(run: Run, lacking: Collection[str]) -> Preprocessor:
    """What reads texts, without tokenizers that are not here."""
    reads = run.config.condition.conditioner == "mllm" and "tokenizer" not in lacking
    tokenizer = None if "t5_tokenizer" in lacking else run.tokenizer("t5_tokenizer")
    return Preprocessor(run.config, run.processor() if reads else None, tokenizer)


def _of_clips(
    run: Run, stages: Collection[str], file: str, clips: Sequence[ClipTexts], preprocessor: Preprocessor
) -> Iterator[tuple[Reading, dict[int, int]]]:
    condition = run.config.condition
    by_t5, by_mllm = read_by_t5(run.config, stages), read_by_mllm(run.config, stages)
    captions, prompts = [each.caption for each in clips], [each.prompt for each in clips]
    if preprocessor.t5_tokenizer is not None:
        reading = functools.partial(Reading, file, room=condition.text_tokens, field="config.condition.text_tokens")
        if "caption" in by_t5:
            yield reading("caption"), _by_line(clips, preprocessor.text_lengths(captions))
        if "prompt" in by_t5:
            # A prompt that is the caption is not named twice.
            own = [each.prompt != each.caption for each in clips]
            lengths = [n * new for n, new in zip(preprocessor.text_lengths(prompts), own, strict=True)]
            yield reading("prompt"), _by_line(clips, lengths)
    if preprocessor.processor is None or not by_mllm:
        return
    most: Callable = preprocessor.processor.most_tokens
    counts = [each.subjects for each in clips]
    room, field = preprocessor.processor.max_length, "config.condition.mllm_tokens"
    reading = functools.partial(Reading, file, room=room, field=field, bucket=run.bucket_name)
    yield reading("prompt with its references"), _by_line(clips, most(prompts, counts))
    if "caption with its references" in by_mllm:
        yield reading("caption with its references"), _by_line(clips, most(captions, counts))
    elif "caption" in by_mllm:
        yield reading("caption"), _by_line(clips, most(captions, [0] * len(clips)))


def read_by_t5(config: Config, stages: Iterable[str]) -> set[str]:
    """The texts of a clip that T5 reads in some of the stages."""
    return {text for name in stages for text in STAGES[name].read_by_t5(config)}


def read_by_mllm(config: Config, stages: Iterable[str]) -> set[str]:
    """The same of the multimodal LLM."""
    return {text for name in stages for text in STAGES[name].read_by_mllm(config)}


def _by_line(clips: Sequence[ClipTexts], lengths: Sequence[int]) -> dict[int, int]:
    return {each.line: length for each, length in zip(clips, lengths, strict=True)}


def _of_captions(captions: Captions, preprocessor: Preprocessor) -> Iterator[tuple[Reading, dict[int, int]]]:
    """Of no video, without references."""
    condition = preprocessor.config.condition
    if preprocessor.t5_tokenizer is not None:
        reading = Reading(str(captions.path), "", condition.text_tokens, "config.condition.text_tokens")
        yield reading, _lengths(captions, preprocessor.text_lengths)
    if (processor := preprocessor.processor) is not None:
        reading = Reading(str(captions.path), "", processor.max_length, "config.condition.mllm_tokens")
        yield reading, _lengths(captions, lambda texts: processor.most_tokens(texts, [0] * len(texts)))


def _lengths(captions: Captions, measure: Callable[[Sequence[str]], list[int]]) -> dict[int, int]:
    """That of each line, without all of their tokens in memory at once."""
    starts = range(0, len(captions), CHUNK)
    chunks = ([captions[i] for i in range(len(captions))[start : start + CHUNK]] for start in starts)
    lengths = (length for chunk in chunks for length in measure(chunk))
    return dict(zip(captions.lines.tolist(), lengths, strict=True))
