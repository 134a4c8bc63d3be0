"""Encoding the videos of a manifest into ArrayRecord files, by any number of processes that may be killed.

output/
  prepare.json             what the records depend on; other input is refused
  videos-train.array_record-00000-of-000NN
  shards/00000.json        written when that shard is whole: its records' names, who was rejected and why, its size
  locks/                   keep two processes off one shard
  rejected.jsonl, ids.json, texts.jsonl, groups.json, features.json, dataset_info.json
                           written so when all shards are there
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tqdm import tqdm

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import Config
from cinema_jax.data import records
from cinema_jax.data.folder import Folder
from cinema_jax.data.manifest import manifest_file
from cinema_jax.devices.interruption import Interrupted, Interruption
from cinema_jax.errors import InputError, passing_error
from cinema_jax.experiment.checkpoint import digest
from cinema_jax.experiment.parts import TOKENIZERS
from cinema_jax.experiment.run import Run
from cinema_jax.experiment.standing import refuse_unfinished
from cinema_jax.inputs.files import MOST_OF_LIST, read_json
from cinema_jax.inputs.publishing import Locks, Output
from cinema_jax.inputs.typed import checked
from cinema_jax.training import texts
from cinema_jax.training.latents import read_ahead, vae_key
from cinema_jax.training.phases import every_run
from cinema_jax.training.watch import check_unreadable

logger = logging.getLogger(__name__)

# Fields of config.data on which records depend; the last two, because a box may show a margin, and because a held-out
# clip gives its beginning.
DEPENDS = ("frames", "height", "width", "fps", "max_references", "crop_references", "validation_fraction")
# Clips [batch_size frames height width 3] to latents in bf16; may return before they are computed.
Encode = Callable[[np.ndarray], Any]


def prepare(
    config: Config,
    manifest: Path,
    output: str,
    *,
    process: tuple[int, int] = (0, 1),
    shard_size: int = 128,
    batch_size: int = 8,
    retry_rejected: bool = False,
) -> bool:
    """Make the records of one process of several, (its number, how many there are); returns whether all are made.

    Raises `InputError` for a manifest, config or output that does not do, and as `Preparation.run` does.
    """
    run = Run(config, Path(output))
    # First, because a mistake in the manifest is found at once.
    sources = _sources(run, manifest, output)
    if config.init:
        refuse_unfinished(run.initial, f"config.init is {config.init!r}")
    configs, params, origins = run.load_parts(["vae"])
    if origins["vae"] == "random":
        raise InputError("the vae has no weights: name them as config.weights.vae, or a checkpoint as config.init")
    encode, together = make_encode(Cinema(config, configs), params), batch_size * jax.local_device_count()
    vae, whole = vae_key(digest(params), configs["vae"]), True
    for one, source in sources:
        data = one.config.data
        clips = jax.ShapeDtypeStruct((together, data.frames, data.height, data.width, 3), np.uint8)
        key = {
            "manifest": hashlib.sha256(manifest_file(manifest).read_bytes()).hexdigest()[:16],
            "vae": vae,
            "shape": list(jax.eval_shape(encode, clips).shape[1:]),
            "shard_size": shard_size,
            **{name: getattr(data, name) for name in DEPENDS},
            # Which of the videos are in this folder follows from these and from the videos themselves.
            "buckets": [list(sizes) for sizes in data.buckets],
            "clips": hashlib.sha256(json.dumps([source.id(i) for i in range(len(source))]).encode()).hexdigest()[:16],
        }
        folder = Output(epath.Path(output) / one.records_folder)
        work = Preparation(source, folder, key, shard_size, retry_rejected)
        whole = work.run(encode, process, together, data.threads) and whole
    return whole


def _sources(run: Run, manifest: Path, output: str) -> list[tuple[Run, Folder]]:
    """The clips of every bucket, in each phase that has clips of its own; of none where there is none.

    Refuses texts that are too long. Writes down how many each bucket has, for those who read the records. Raises
    `InputError` where a phase has none.
    """
    every = [
        [(bucket, bucket.clips(manifest, "all")) for bucket in one.buckets] for one in every_run(run, run.config.stages)
    ]
    for own in every:
        if not any(len(source) for _, source in own):
            raise own[0][0].no_clip()
    found = [(bucket, source) for own in every for bucket, source in own if len(source)]
    _check_texts(run, found)
    for own in every:
        if own[0][0].bucket is not None:
            counts = {bucket.bucket_name: len(source) for bucket, source in own}
            place = Output(epath.Path(output) / os.path.dirname(own[0][0].records_folder))
            with place.lock("buckets"):
                if not (place.path / records.BUCKETS).exists():
                    place.publish_json(records.BUCKETS, counts)
    return found


def _check_texts(run: Run, sources: Iterable[tuple[Run, Folder]]) -> None:
    """Refuse texts for which the config has no room, as training would, as far as their tokenizers are here."""
    lacking = []
    for name in TOKENIZERS:
        # What reads them may lie on the machine that trains.
        with contextlib.suppress(InputError):
            if run.folder(name) is not None:
                continue
        lacking.append(name)
        logger.warning("texts are not measured by the %s: it is not here; name it as config.weights.%s", name, name)
    texts.check(run, run.config.stages, texts.said_of(sources), lacking)


def make_encode(cinema: Cinema, params: Params) -> Encode:
    """The VAE on all devices of this process, which share a batch; each computes what it would alone."""
    mesh = Mesh(np.asarray(jax.local_devices()), ("device",))
    rows = PartitionSpec("device")
    encode = jax.shard_map(
        cinema.encode_video, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows, check_vma=False
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    placed = {path: jax.device_put(np.asarray(x), everywhere) for path, x in params.items()}
    return functools.partial(jax.jit(lambda params, clips: encode(params, clips).astype(jnp.bfloat16)), placed)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What is made of which videos. Nothing in here depends on the number of processes."""

    source: Folder
    output: Output
    # What the records depend on beside the videos: becomes prepare.json.
    key: Mapping[str, Any]
    # Examples of a shard.
    shard_size: int
    # Make the shards again in which a video was rejected.
    retry_rejected: bool = False

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.source) // self.shard_size)

    def check_key(self) -> None:
        """Claim the output; InputError if other videos, or these ones in another way, are prepared there."""
        file = self.output.path / records.KEY
        with self.output.lock("folder"):
            if not file.exists():
                self.output.publish_json(records.KEY, self.key)
        found = read_json(file)
        wrong = [f"{k} is {found.get(k)!r} there and {x!r} here" for k, x in self.key.items() if found.get(k) != x]
        if wrong:
            raise InputError(
                f"{self.output.path} holds records that were prepared otherwise: {'; '.join(wrong)}. "
                "Choose another --output"
            )

    def missing(self, shard: int) -> bool:
        """Whether a shard is still to be made."""
        note, file = self._note(shard), self.output.path / records.file_name(shard, self.shards)
        if not note.exists():
            return True
        try:
            found = self._read_note(shard)
        except InputError as error:
            logger.warning("%s; the shard is made again", error)
            return True
        whole = file.exists() and file.stat().length == found.bytes
        return not whole or (self.retry_rejected and bool(found.rejected))

    def run(self, encode: Encode, process: tuple[int, int], batch_size: int, threads: int) -> bool:
        """Make the shards of one process, (its number, how many there are); the last one of all closes the folder.

        Returns whether the folder is whole. Raises `InputError`, with the list, once more than 1 % of all videos
        cannot be read.
        """
        self.check_key()
        todo = [shard for shard in range(process[0], self.shards, process[1]) if self.missing(shard)]
        total = sum(len(self._entries(shard)) for shard in todo)
        if todo:
            # Nobody may take the folder for whole meanwhile.
            for file in (self.output.path / records.INFO, *map(self._note, todo)):
                file.unlink(missing_ok=True)
        rejected: dict[str, str] = {}
        locks = Locks(self.output)
        with (
            Interruption() as interruption,
            ThreadPoolExecutor(threads) as pool,
            tqdm(total=total, desc="prepare", unit="video") as bar,
            contextlib.closing(locks),
            interruption.after_the_step(),
        ):
            read = read_ahead(pool, self._read, self._chunks(todo, batch_size, locks))
            encoded = _encoded(read, encode, batch_size)
            for shard, batches in itertools.groupby(encoded, key=lambda batch: batch[0].shard):
                rejected |= self._write(shard, _watched(batches, bar, interruption))
                locks.release(shard)
                check_unreadable(rejected, len(self.source), "videos")
        with self.output.lock("folder"):
            return self._close()

    def _entries(self, shard: int) -> range:
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self.source)))

    def _note(self, shard: int) -> epath.Path:
        return self.output.path / "shards" / f"{shard:05d}.json"

    def _read_note(self, shard: int) -> "_Note":
        file = self._note(shard)
        found = checked(read_json(file, MOST_OF_LIST), _Note, f"{file}: ")
        if {*found.ids, *found.rejected} != {self.source.id(index) for index in self._entries(shard)}:
            raise InputError(f"{file} names other examples than the manifest")
        return found

    def _chunks(self, todo: list[int], batch_size: int, locks: Locks) -> Iterator[list["_Place"]]:
        """The examples of the shards that nobody else is making, in batches."""
        for shard in todo:
            if locks.acquire(shard) and self.missing(shard):
                places = [_Place(shard, index) for index in self._entries(shard)]
                yield from (places[i : i + batch_size] for i in range(0, len(places), batch_size))

    def _read(self, place: "_Place") -> "_Example":
        source, index = self.source, place.index
        fields = {"id": source.id(index), "caption": source.caption(index), "prompt": source.prompt(index)}
        try:
            references = [records.encode_reference(reference) for reference in source.references(index)]
            return _Example(place.shard, {**fields, "references": references}, source.video(index))
        except InputError as error:
            # Storage that is out of reach for now says nothing of the video.
            if passing := passing_error(error):
                raise passing from None
            return _Example(place.shard, fields, str(error))

    def _write(self, shard: int, batches: Iterable[list["_Example"]]) -> dict[str, str]:
        """Write a shard; returns its rejected examples."""
        features = records.record_features(self.key["shape"])
        ids: list[str] = []
        rejected: dict[str, str] = {}

        def write(file: Path) -> None:
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for example in itertools.chain.from_iterable(batches):
                if isinstance(example.content, str):
                    rejected[example.fields["id"]] = example.content
                else:
                    record = {**example.fields, "latents": example.content}
                    writer.write(records.serialize(features, record))
                    ids.append(example.fields["id"])
            writer.close()

        name = records.file_name(shard, self.shards)
        self.output.publish(name, write)
        size = (self.output.path / name).stat().length
        self.output.publish_json(f"shards/{shard:05d}.json", {"ids": ids, "rejected": rejected, "bytes": size})
        return rejected

    def _close(self) -> bool:
        """Write what is known when all shards are there; returns whether they are."""
        folder = self.output.path / "shards"
        there = {file.name for file in folder.iterdir()} if folder.exists() else set()
        if not there >= {self._note(shard).name for shard in range(self.shards)}:
            return False
        notes = [self._read_note(shard) for shard in range(self.shards)]
        rejected = {name: why for note in notes for name, why in note.rejected.items()}
        lines = "".join(json.dumps({"id": name, "reason": why}) + "\n" for name, why in rejected.items())
        self.output.publish("rejected.jsonl", lambda file: file.write_text(lines))
        check_unreadable(rejected, len(self.source), "videos")
        ids = [name for note in notes for name in note.ids]
        if not ids:
            raise InputError(f"the only video cannot be read: {next(iter(rejected.values()))}")
        self.output.publish_json(records.IDS, ids)
        groups = {self.source.id(index): self.source.group(index) for index in range(len(self.source))}
        self.output.publish(records.TEXTS, functools.partial(self._write_texts, ids))
        known = {"records": [groups[name] for name in ids], "ends": self.source.ends}
        self.output.publish_json(records.GROUPS, known)
        with tempfile.TemporaryDirectory() as scratch:
            _write_dataset_info(Path(scratch), self.key["shape"], notes)
            for name in ("features.json", records.INFO):
                self.output.publish(name, functools.partial(shutil.copyfile, Path(scratch, name)))
        logger.info(
            "%s: %d records in %d shards, %d videos rejected", self.output.path, len(ids), len(notes), len(rejected)
        )
        return True

    def _write_texts(self, ids: Iterable[str], file: Path) -> None:
        """What is said of every record, in order, so that training can measure it without the records."""
        said = {texts.id: texts for texts in self.source.texts()}
        with file.open("w") as stream:
            for each in map(said.__getitem__, ids):
                told = {"id": each.id, "caption": each.caption, "prompt": each.prompt, "subjects": each.subjects}
                stream.write(json.dumps(told) + "\n")


@dataclasses.dataclass(frozen=True)
class _Note:
    """What is written when a shard is whole."""

    ids: list[str]
    # Names of the examples that are not in it, and why.
    rejected: dict[str, str]
    # Size of the shard's file.
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Place:
    shard: int
    # Of the example, in the source.
    index: int


@dataclasses.dataclass(frozen=True)
class _Example:
    shard: int
    fields: dict[str, Any]
    # The clip, later its latents in bf16; or why there is none.
    content: np.ndarray | str


def _encoded(batches: Iterable[list[_Example]], encode: Encode, batch_size: int) -> Iterator[list[_Example]]:
    """The same examples with latents in place of clips; the device encodes a batch while the one before is written."""
    begun: list[tuple[list[_Example], Any]] = []
    for batch in batches:
        clips = [example.content for example in batch if not isinstance(example.content, str)]
        # Filled up, so that the encoder is compiled for one shape only.
        padded = clips + clips[-1:] * (batch_size - len(clips))
        begun.append((batch, encode(np.stack(padded)) if clips else ()))
        if len(begun) > 1:
            yield _finished(*begun.pop(0))
    for batch, latents in begun:
        yield _finished(batch, latents)


def _finished(batch: list[_Example], latents: Any) -> list[_Example]:
    rows = iter(np.asarray(latents))
    return [e if isinstance(e.content, str) else dataclasses.replace(e, content=next(rows)) for e in batch]


def _watched(batches: Iterable[list[_Example]], bar: tqdm, interruption: Interruption) -> Iterator[list[_Example]]:
    for batch in batches:
        if interruption.requested:
            raise Interrupted(interruption.requested, f"in shard {batch[0].shard}")
        yield batch
        bar.update(len(batch))


def _write_dataset_info(folder: Path, shape: list[int], notes: list["_Note"]) -> None:
    """What TensorFlow Datasets needs to read the records."""
    version = tfds.core.Version("1.0.0")
    identity = DatasetIdentity(name=records.NAME, version=version, data_dir=str(folder), module_name="")
    info = tfds.core.DatasetInfo(builder=identity, features=records.record_features(shape))
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=records.NAME, split=records.SPLIT, filetype_suffix="array_record"
    )
    lengths, size = [len(note.ids) for note in notes], sum(note.bytes for note in notes)
    split = tfds.core.SplitInfo(name=records.SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template)
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)
