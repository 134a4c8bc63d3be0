"""Videos that `cinema_jax.prepare` has encoded: a folder of ArrayRecord files, as a `Source`.

A record is a `tf.train.Example`, laid out by the features of `record_features`, so that `tfds.builder_from_directory`
reads the folder as well. Reading here takes from a record only what is asked for: TensorFlow Datasets would decode all
views of all references for every caption.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from jaxtyping import BFloat16, UInt8
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from cinema_jax.data.choices import choose_views, entries_of_split, held_out
from cinema_jax.data.example import ClipTexts, Conditions, Reference
from cinema_jax.data.images import decode_png
from cinema_jax.errors import InputError, fault_of
from cinema_jax.inputs.files import MOST_OF_LIST, parse_json, read_json, read_text
from cinema_jax.inputs.typed import checked

# What the data set is called in file names, and its only split: held-out examples are chosen when it is read.
NAME, SPLIT = "videos", "train"
# Of a folder of buckets: how many clips belong to each.
BUCKETS = "buckets.json"
# Beside the records and what TensorFlow Datasets needs: what they depend on, the name of every record, in order, by
# what each is held out, and its texts, a line each.
KEY, IDS, GROUPS, TEXTS, INFO = "prepare.json", "ids.json", "groups.json", "texts.jsonl", "dataset_info.json"
# Of `GROUPS`: by what records are held out, and videos that are none.
_LISTS = ("records", "ends")
# Of `KEY`, what is read here.
_KEY_TYPES = {
    **dict.fromkeys(("frames", "height", "width", "max_references"), int),
    **{"fps": float, "shape": list[int]},
}
# Fast; the default level takes 4 times as long for a twelfth of the size.
PNG_LEVEL = 1
# Records that a process keeps: an example is asked for its conditions and then for its latents, and one read serves
# both, in as many threads.
KEPT = 16


def record_features(shape: Sequence[int]) -> tfds.features.FeaturesDict:
    """How a record is laid out; `shape`: of one video's latents, [F H W C]."""
    features = tfds.features
    reference = {
        "image": features.Image(encoding_format="png"),
        # White where `masked` is false.
        "mask": features.Image(shape=(None, None, 1), encoding_format="png"),
        "masked": features.Scalar(np.bool_),
        "subject": features.Text(),
        # Empty where it is not known.
        "noun": features.Text(),
        # Whether `image` shows something outside `mask`.
        "background": features.Scalar(np.bool_),
        # Whether it is cut out of the clip itself.
        "same_clip": features.Scalar(np.bool_),
    }
    return features.FeaturesDict(
        {
            "id": features.Text(),
            "caption": features.Text(),
            "prompt": features.Text(),
            "latents": features.Tensor(shape=tuple(shape), dtype=ml_dtypes.bfloat16, encoding="bytes"),
            "references": features.Sequence(reference),
        }
    )


def encode_reference(reference: Reference) -> dict[str, Any]:
    """A reference as `record_features` stores it."""
    mask = np.full(reference.image.shape[:2], 255, np.uint8) if reference.mask is None else reference.mask
    return {
        "image": _png(reference.image),
        "mask": _png(mask),
        "masked": reference.mask is not None,
        "subject": reference.subject,
        "noun": reference.noun or "",
        "background": reference.background,
        "same_clip": reference.same_clip,
    }


def serialize(features: tfds.features.FeaturesDict, example: Mapping[str, Any]) -> bytes:
    """A record, the same bytes in every process."""
    # A message's map has no order of its own.
    message = tf_example_pb2.Example.FromString(features.serialize_example(example))
    return message.SerializeToString(deterministic=True)


def file_name(shard: int, shards: int) -> str:
    """What TensorFlow Datasets calls a shard."""
    return f"{NAME}-{SPLIT}.array_record-{shard:05d}-of-{shards:05d}"


class _Entry(NamedTuple):
    id: str
    group: str
    # Among all records of the folder.
    record: int


class Records:
    """Captions, references and latents of a folder that `cinema_jax.prepare` has finished; the videos are gone."""

    def __init__(
        self,
        path: str,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | int,
        max_references: int,
        split: str = "train",
        validation_fraction: float | int = 0.05,
        of_bucket: bool = False,
        other_view: float | int = 0.0,
    ):
        """Opens a folder, on disk or `gs://`.

        Raises `InputError` if it is not whole, was prepared by an older version, for clips of another length, size or
        rate or for more references, or if a split would be empty (but of one bucket of several it may be); splits are
        those that `Folder` makes of the same videos. `other_view`: see `choices.choose_views`.
        """
        self._folder, self._max_references, self._other_view = epath.Path(path), max_references, other_view
        if not (self._folder / INFO).exists():
            raise InputError(
                f"{path} holds no {INFO}: it must be a folder that cinema_jax.prepare has finished; run that to its end"
            )
        if not (self._folder / GROUPS).exists():
            raise InputError(f"{path} holds no {GROUPS}: an older version prepared it; prepare the videos again")
        self._key = _read_key(self._folder / KEY)
        wanted = {"frames": frames, "height": height, "width": width, "fps": fps}
        if other := [f"{name} {self._key[name]:g}, not {x:g}" for name, x in wanted.items() if self._key[name] != x]:
            raise InputError(
                f"{path} was prepared with {', '.join(other)}: set config.data to that, or prepare the videos again"
            )
        if self._key["max_references"] > max_references:
            raise InputError(
                f"{path} was prepared with up to {self._key['max_references']} references an example; "
                f"config.data.max_references is {max_references} and must be at least that"
            )
        ids = _read_list(self._folder / IDS)
        groups = read_json(self._folder / GROUPS, MOST_OF_LIST)
        groups = checked(groups, dict[str, Any], str(self._folder / GROUPS))
        groups = {name: checked(groups.get(name), list[str], f"{self._folder / GROUPS}: {name}") for name in _LISTS}
        if len(ids) != len(groups["records"]):
            raise InputError(
                f"{self._folder} is damaged: {IDS} names {len(ids)} records, {GROUPS} {len(groups['records'])}"
            )
        entries = [_Entry(*each, record) for record, each in enumerate(zip(ids, groups["records"], strict=True))]
        # Groups of other buckets, and of videos that could not be read, decide with these.
        held = held_out(path, [*groups["records"], *groups["ends"]], validation_fraction, split)
        self._entries = entries_of_split(path, entries, groups["records"], held, split)
        if not self._entries and not of_bucket:
            raise InputError(
                f"{path}: all videos of the {split} split were rejected; correct them and run prepare with "
                "--retry-rejected, or change config.data.validation_fraction"
            )
        with fault_of(f"{path}: its records cannot be opened"):
            self._records = ArrayRecordDataSource(self._files(len(ids)))

    def _files(self, count: int) -> list[str]:
        """The files that hold anything, each with the range of its records: so that none is opened to count them."""
        file = self._folder / INFO
        with fault_of(f"{file} does not say what the files hold"):
            lengths = [int(length) for length in read_json(file)["splits"][0]["shardLengths"]]
        if sum(lengths) != count or min(lengths) < 0:
            raise InputError(f"{self._folder} is damaged: {IDS} names {count} records, {INFO} {sum(lengths)}")
        names = [f"{self._folder / file_name(i, len(lengths))}[0:{n}]" for i, n in enumerate(lengths)]
        return [name for name, length in zip(names, lengths, strict=True) if length]

    def __len__(self) -> int:
        return len(self._entries)

    def id(self, index: int) -> str:
        return self._entries[index].id

    def group(self, index: int) -> str:
        """By what example `index` is held out."""
        return self._entries[index].group

    def texts(self) -> list[ClipTexts] | None:
        """Of all examples, without their records. None where an older version prepared them and did not write them."""
        file = self._folder / TEXTS
        if not file.exists():
            return None
        lines = read_text(file, MOST_OF_LIST).rstrip("\n").split("\n")
        if len(lines) != len(self._records):
            raise InputError(f"{file} is damaged: it has {len(lines)} lines for {len(self._records)} records")
        return [self._texts_of(entry, str(file), lines[entry.record]) for entry in self._entries]

    @staticmethod
    def _texts_of(entry: _Entry, file: str, line: str) -> ClipTexts:
        place = f"{file}:{entry.record + 1}"
        told = checked(parse_json(line, place), dict[str, Any], place)
        found = checked(told | {"file": file, "line": entry.record + 1}, ClipTexts, f"{place}: ")
        if found.id != entry.id:
            raise InputError(f"{place}: id is {found.id!r}; the record is {entry.id!r}")
        return found

    def video(self, index: int) -> UInt8[np.ndarray, "frames height width 3"]:
        """Raises `InputError`: there is none."""
        raise InputError(
            f"{self._folder} holds latents; for pixels, train from the videos with config.data.source=folder"
        )

    def frame(self, index: int, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
        """Raises `InputError`: there is none."""
        return self.video(index)[0]

    def caption(self, index: int) -> str:
        """The detailed description of video `index`."""
        with self._reading(index):
            return self._value(index, "caption").decode()

    def conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        """What `Folder` gives for the same video and generator. Raises `InputError` if the record is damaged."""
        with self._reading(index):
            return self._conditions(index, rng)

    def _conditions(self, index: int, rng: np.random.Generator) -> Conditions:
        field = lambda name: _values(self._example(index), f"references/{name}")  # noqa: E731
        subjects = [text.decode() for text in field("subject")]
        nouns = [text.decode() or None for text in field("noun")]
        images, masks, masked, background = (field(name) for name in ("image", "mask", "masked", "background"))
        # Records of before do not say.
        same_clip = [bool(same) for same in field("same_clip")] or [False] * len(subjects)

        def reference(i: int) -> Reference:
            mask = decode_png(masks[i]) if masked[i] else None
            return Reference(decode_png(images[i]), mask, subjects[i], nouns[i], bool(background[i]), same_clip[i])

        prompt = self._value(index, "prompt").decode()
        chosen = choose_views(prompt, subjects, nouns, self._max_references, 0.0, rng, same_clip, self._other_view)
        return Conditions(self.caption(index), prompt, tuple(map(reference, chosen)))

    @property
    def latents(self) -> "VideoLatents":
        """Of every example."""
        return VideoLatents(self)

    def read_latents(self, index: int) -> BFloat16[np.ndarray, "F H W C"]:
        """Of example `index`. Raises `InputError` if the record is damaged."""
        with self._reading(index):
            return np.frombuffer(self._value(index, "latents"), ml_dtypes.bfloat16).reshape(self._key["shape"])

    def check_vae(self, vae: str) -> None:
        """Raises `InputError` if another VAE made the latents."""
        if (theirs := self._key.get("vae")) != vae:
            raise InputError(
                f"{self._folder} was prepared with another VAE ({theirs}) than this run's ({vae}): name that "
                "one as config.weights.vae, or prepare the videos again"
            )

    def _reading(self, index: int) -> AbstractContextManager[None]:
        """Around what reads a record: the file, the message and the pictures in it may each be damaged."""
        return fault_of(f"{self._folder}: the record of {self._entries[index].id} cannot be read")

    def _example(self, index: int) -> tf_example_pb2.Example:
        return _read(self._records, self._entries[index].record)

    def _value(self, index: int, field: str) -> bytes:
        return _values(self._example(index), field)[0]


def _read_key(file: epath.Path) -> dict[str, Any]:
    """What the records depend on; of it, what is asked for here is as it should be."""
    key = read_json(file)
    for name, kind in _KEY_TYPES.items():
        if name not in key:
            raise InputError(f"{file}: {name} is missing")
        key[name] = checked(key[name], kind, f"{file}: {name}")
    return key


def _read_list(file: epath.Path) -> list[str]:
    return checked(parse_json(read_text(file, MOST_OF_LIST), str(file)), list[str], str(file))


@runtime_checkable
class HoldsLatents(Protocol):
    """A source of encoded videos."""

    def __len__(self) -> int: ...

    def read_latents(self, index: int) -> BFloat16[np.ndarray, "F H W C"]:
        """Of example `index`."""
        ...


class VideoLatents(Sequence):
    """The latents of all examples of `records`, each read when it is asked for."""

    def __init__(self, records: HoldsLatents):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> BFloat16[np.ndarray, "F H W C"]:
        return self._records.read_latents(index)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


@lru_cache(maxsize=KEPT)
def _read(records: ArrayRecordDataSource, index: int) -> tf_example_pb2.Example:
    return tf_example_pb2.Example.FromString(records[index])


def _values(example: tf_example_pb2.Example, field: str) -> Sequence:
    feature = example.features.feature[field]
    kind = feature.WhichOneof("kind")
    return getattr(feature, kind).value if kind else ()


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=PNG_LEVEL)
    return file.getvalue()
