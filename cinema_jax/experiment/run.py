"""A run: its folder, where every part's weights come from, and what its stages share.

workdir/
  config.json              what was run
  history.jsonl            how that was changed by --amend, if it was
  parts/<part>/            the result so far of each trained part, in the Hugging Face layout (averaged weights)
  checkpoints/<stage>/     the whole train state, to go on from
  stages/<stage>.json      written when a stage is finished: its closing metrics, the digests of what it used and made
  stages/<stage>.parts/    what it has made, until then (see results.py)
  latents/                 encoded videos
  samples/                 videos and contact sheets
  metrics.jsonl, tensorboard/
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from cinema_jax.config import ON_CLIPS, Config, parse, to_dict
from cinema_jax.data.buckets import Bucket
from cinema_jax.data.captions import Captions
from cinema_jax.data.critters.grammar import vocabulary
from cinema_jax.data.example import Source
from cinema_jax.data.folder import Folder
from cinema_jax.data.preprocessor import Preprocessor, mllm_room
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.experiment import amending, locks, parts, results
from cinema_jax.experiment.fit import I2V_ALONE, fits, outer_sizes, reads_pictures, takes_text
from cinema_jax.experiment.pipelines import FOLDERS, is_pipeline, pipeline_config
from cinema_jax.experiment.sources import SOURCES, Wanted, folder_clips
from cinema_jax.inputs.places import check_workdir
from cinema_jax.models.qwen_vl.processing import TEMPLATES, Processor, Template
from cinema_jax.models.qwen_vl.tokenizer import build_word_tokenizer, load_tokenizer
from cinema_jax.weights.rules import Array

# Fields of a part that no published config has: they always come from the run's own config.
OWN_FIELDS = {"dit": ("entity_time", "entity_index", "reference_times", "sequence_multiple", "remat")}
# Who reads the tokens of each tokenizer.
READERS = {"tokenizer": "mllm", "t5_tokenizer": "t5"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration in a folder."""

    config: Config
    workdir: Path
    # With `config.data.buckets`, the one whose shapes `config.data` has.
    bucket: int | None = None
    # Others of its size, whose clips it has too.
    others: tuple[int, ...] = ()
    # With `curriculum`, most frames of a clip in a phase before the main one.
    most_frames: int | None = None
    # Of a checkpoint that is loaded, perhaps on another machine than it was trained on: what lies there in the place of
    # `config.init`, or "". None: the run is trained here, where its config is right.
    init: str | None = None

    @property
    def buckets(self) -> tuple["Run", ...]:
        """This run at the shapes of each bucket; itself where there are none."""
        run = self._in_buckets
        return tuple(run._in_bucket(i) for i in range(len(run.config.data.buckets))) or (self,)

    @property
    def _in_buckets(self) -> "Run":
        """This run; with one bucket where it has none and a stage begins with shorter clips, or pictures."""
        shorter = any(self.config.of_stage(stage).curriculum for stage in ON_CLIPS)
        return self.up_to(self.most_frames) if shorter and not self.config.data.buckets else self

    def up_to(self, frames: int | None) -> "Run":
        """This run with clips of at most so many frames, for a phase before the main one; None: as long as they are.

        Longer buckets are cut to that. Without any there is one, of the config's size, so that clips which are too
        short for it are left out.
        """
        data = self.config.data
        sizes = data.buckets or ((data.frames, data.height, data.width, max(1, data.max_references)),)
        cut = dict.fromkeys((min(frames or size[0], size[0]), *size[1:]) for size in sizes)
        data = dataclasses.replace(data, frames=min(frames or data.frames, data.frames), buckets=tuple(cut))
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data), most_frames=frames)

    @property
    def shown(self) -> "Run":
        """What people are shown: the first bucket's size, with the clips of all that differ in references alone."""
        run = self._in_buckets
        buckets = run.config.data.buckets
        if not buckets:
            return self
        alike = [i for i, sizes in enumerate(buckets) if sizes[:3] == buckets[0][:3]]
        roomiest = max(alike, key=lambda i: buckets[i][3])
        others = tuple(i for i in alike if i != roomiest)
        return dataclasses.replace(run._in_bucket(roomiest), others=others)

    def sources(self, split: str) -> list[tuple["Run", Source]]:
        """The buckets that have clips of a split, and these. Raises InputError where there is nothing to train on."""
        found = [(one, source) for one in self.buckets if len(source := one.source(split))]
        if not found and split == "train":
            raise self.buckets[0].no_clip()
        return found

    def _in_bucket(self, number: int) -> "Run":
        frames, height, width, references = self.config.data.buckets[number]
        sizes = {"frames": frames, "height": height, "width": width, "max_references": references}
        data = dataclasses.replace(self.config.data, **sizes)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, data=data), bucket=number)

    @property
    def bucket_name(self) -> str:
        """For instance 49x480x720x4; empty where there are no buckets."""
        return "" if self.bucket is None else Bucket(*self.config.data.buckets[self.bucket]).name

    @property
    def records_folder(self) -> str:
        """Where its records lie among those that `prepare` makes: "", a bucket's, or one in a phase's."""
        phase = "" if self.most_frames is None else f"up_to_{self.most_frames}_frames"
        return os.path.join(phase, self.bucket_name)

    @classmethod
    def open(cls, config: Config, workdir: Path, amend: bool = False) -> "Run":
        """Start a run, or go on with the one in `workdir`.

        One that never came to a checkpoint is replaced. With `amend` the config there is changed where that leaves what
        was trained as it is (`amending.py`). InputError names the fields in which the configs differ.
        """
        check_workdir(workdir)
        if config.condition.conditioner == "both":
            raise InputError(
                "config.condition.conditioner is 'both', with which videos are generated and nothing is trained: take "
                "mllm or t5"
            )
        cls(config, workdir).check_prediction()
        distributed.agree("their --config", to_dict(config))
        distributed.in_first(lambda: cls._enter(config, workdir, amend))
        distributed.check_shared(workdir)
        return cls(config, workdir)

    @staticmethod
    def _enter(config: Config, workdir: Path, amend: bool) -> None:
        run, new = Run(config, workdir), json.loads(json.dumps(to_dict(config)))
        if not (workdir / "config.json").exists():
            workdir.mkdir(parents=True, exist_ok=True)
            parts.write_json(workdir / "config.json", new)
        elif changes := run._changes():
            with locks.locked(workdir):
                if not amending.has_begun(workdir):
                    amending.replace(workdir, new)
                else:
                    amending.amend(workdir, config, changes, allowed=amend)

    def refuse_another(self, amend: bool) -> None:
        """Raises InputError where the folder holds a run of another config that has begun, and may not be amended."""
        if (self.workdir / "config.json").exists() and amending.has_begun(self.workdir):
            amending.check(self.workdir, self.config, self._changes(), allowed=amend)

    def _changes(self) -> list[amending.Difference]:
        """The fields in which the run that the folder holds differs from this one."""
        # A field that is newer than the folder had its default there.
        old, new = parse(parts.read_json(self.workdir / "config.json")), self.config
        return list(amending.differences(*(json.loads(json.dumps(to_dict(config))) for config in (old, new))))

    @classmethod
    def load(cls, workdir: Path, init: str = "") -> "Run":
        """The run in `workdir`, as it was configured; an import; or a folder in the layout of diffusers.

        Args:
            workdir: the checkpoint's folder.
            init: the folder or hub repository that holds the parts which the run did not train, where those that its
                config names are not on this machine: its `config.init`, or that and `config.weights` as one checkpoint.

        Raises:
            InputError: there is no checkpoint in `workdir`, or in `init` if it is named, or that lacks a part.
        """
        if is_pipeline(workdir):
            return cls(pipeline_config(workdir), workdir, init=init)
        file = workdir / "config.json"
        if not file.is_file():
            raise InputError(
                f"{workdir} holds neither config.json nor model_index.json; a checkpoint is the --workdir of a "
                "training run, an import, or a folder in the layout of diffusers"
            )
        if stages := locks.unsettled(workdir):
            raise InputError(
                f"{workdir} was stopped while the result of {', '.join(stages)} was moved to its parts/; start its "
                "training command again, which does the rest"
            )
        run = cls(parse(parts.read_json(file)), workdir, init=init)
        if init:
            run._check_init()
        return run

    def _check_init(self) -> None:
        """Refuse an `init` that is no checkpoint, or not that of this run."""
        try:
            Run.load(parts.checkpoint_folder(self.init))
        except InputError as error:
            raise InputError(f"--init={self.init}: {error}") from None
        records = [record for stage in self.config.stages if (record := self.finished(stage))]
        used = {name for record in records for name, origin in record["parts"].items() if origin != "random"}
        if missing := sorted(name for name in used if self.folder(name) is None):
            raise InputError(f"--init={self.init} holds no {', '.join(missing)}, which {self.workdir} was trained with")

    def check_prediction(self) -> None:
        """Refuse a config that would read the network of `config.init` as something else than it was trained as."""
        if not self.config.init or self.config.weights.dit:
            return
        init = self.initial
        if init.folder("dit") is None:
            return
        for name, ours, theirs in (
            ("flow.prediction", self.config.flow.prediction, init.config.flow.prediction),
            ("schedule", self.config.schedule, init.config.schedule),
        ):
            if ours != theirs and (name != "schedule" or self.config.flow.prediction == "v_prediction"):
                wrong = map(str, amending.differences(to_dict(theirs), to_dict(ours), f"config.{name}"))
                raise InputError(f"the transformer of config.init was trained otherwise: {'; '.join(wrong)}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other runs off the folder; the system lets go of it when process 0 ends, however it ends."""
        lock = locks.of(self.workdir)
        distributed.in_first(lambda: locks.acquire(lock, self.workdir))
        try:
            yield
        finally:
            lock.release()

    def finished(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage left behind, or None."""
        return results.record(self.workdir, stage)

    def finish(self, stage: str, record: Mapping[str, Any]) -> None:
        """Mark a stage as finished: what lies aside of it becomes the run's own. Every process must call this."""
        file = self.workdir / "stages" / f"{stage}.json"
        if distributed.is_first():
            file.parent.mkdir(exist_ok=True)
            parts.write_json(file, record)
            results.settle(self.workdir)
        distributed.together(f"{stage} is finished")

    def written(self) -> dict[str, tuple[str, str]]:
        """Of each part that finished stages have made, the last of these and the digest of what it wrote."""
        records = {stage: self.finished(stage) or {} for stage in self.config.stages}
        # Records of before have none.
        made = {stage: record.get("written", {}) for stage, record in records.items()}
        return {name: (stage, digest) for stage, parts in made.items() for name, digest in parts.items()}

    def folder(self, name: str) -> Path | None:
        """Where a part or tokenizer lies: the run's own, what `config.weights` names, what `init` has, else None."""
        own = self.workdir / (FOLDERS[name] if is_pipeline(self.workdir) else f"parts/{name}")
        if (own / ("tokenizer_config.json" if name in parts.TOKENIZERS else "config.json")).is_file():
            return own
        if named := getattr(self.config.weights, name):
            return self._named(name, named)
        if name in READERS and (part := self.folder(READERS[name])) and (part / "tokenizer_config.json").is_file():
            return part
        return self.initial.folder(name) if self.config.init else None

    def _named(self, name: str, named: str) -> Path:
        """Where the part lies that `config.weights` names; in `init`, where that is not on this machine."""
        try:
            return parts.part_folder(name, named)
        except InputError as error:
            if self.init and (found := self.initial.folder(name)):
                return found
            if self.init is None:
                raise
            raise self._elsewhere(f"config.weights.{name}", error) from error

    @property
    def initial(self) -> "Run":
        """The checkpoint that parts without a name in `config.weights` start from."""
        try:
            found = Run.load(parts.checkpoint_folder(self.init or self.config.init))
        except InputError as error:
            if self.init is None:
                raise
            raise self._elsewhere("config.init", error) from error
        return found if self.init is not None else dataclasses.replace(found, init=None)

    def _elsewhere(self, field: str, error: InputError) -> InputError:
        """The same error, with the way out, as the checkpoint has come from another machine."""
        return InputError(
            f"{self.workdir} was trained with parts that are not here ({field}: {error}): --init=DIR says where they "
            "lie on this machine"
        )

    def tokenizer(self, name: str = "tokenizer") -> PreTrainedTokenizerBase:
        """The MLLM's tokenizer, or T5's ("t5_tokenizer"); one of the embedded dataset's words if there is none.

        Raises:
            InputError: the part that reads its tokens was trained with another one, which is not named.
        """
        if folder := self.folder(name):
            return load_tokenizer(folder)
        words, reader = build_word_tokenizer(vocabulary()), READERS[name]
        if (where := self.folder(reader)) and self.part_config(reader).vocab_size != len(words):
            raise InputError(f"the {reader} of {where} has no tokenizer beside it: name one as config.weights.{name}")
        return words

    def part_config(self, part: str) -> Any:
        """The sizes of a part, from its folder or, for one that starts from random numbers, from the config."""
        folder = self.folder(part)
        if part in parts.NEVER_DRAWN:
            if folder is None:
                raise InputError(f"{self.workdir} holds no {part}: name one as config.weights.{part}")
            return parts.read_config(part, folder)
        size = getattr(self.config, f"{part}_model")
        if folder is not None:
            found = parts.read_config(part, folder)
            # Of another kind of network the run's own section may lack some.
            both = {field.name for field in dataclasses.fields(found)} & vars(size).keys()
            own = {name: getattr(size, name) for name in OWN_FIELDS.get(part, ()) if name in both}
            found = dataclasses.replace(found, **own)
            return self._with_room_for_text(found) if part == "dit" else found
        if part == "t5":
            return dataclasses.replace(size, vocab_size=len(self.tokenizer("t5_tokenizer")))
        if part == "mllm":
            tokenizer = self.tokenizer()
            image = tokenizer.convert_tokens_to_ids(self.template.image_token)
            return dataclasses.replace(size, vocab_size=len(tokenizer), image_token_id=image)
        return dataclasses.replace(size, **outer_sizes(part, self.part_config, self.config))

    def _with_room_for_text(self, dit: Any) -> Any:
        """A transformer with a text block as long as the config's, where `pretrain` teaches it to read that."""
        if dit.text_length == "fixed" or "pretrain" not in self.config.stages:
            return dit
        return dataclasses.replace(dit, max_text_seq_length=self.config.condition.text_tokens)

    def check_fit(self, configs: Mapping[str, Any]) -> None:
        """Raises `InputError`, in one sentence, where parts do not fit each other or the config's text block."""
        tokens = self.config.condition.text_tokens
        if "dit" in configs and not takes_text(configs["dit"], tokens):
            theirs = configs["dit"].max_text_seq_length
            raise InputError(
                f"config.condition.text_tokens is {tokens}, but the transformer of {self.folder('dit')} reads {theirs} "
                f"text tokens: set config.condition.text_tokens={theirs}"
            )
        if wrong := [sentence for right, sentence in fits(configs) if not right]:
            raise InputError("; ".join(wrong))
        if reads_pictures(configs.get("dit")) and self.config.condition.reference_channels == "latents":
            raise InputError(f"the transformer of {self.folder('dit')} {I2V_ALONE}")

    def params(self, part: str, afresh: bool = False) -> dict[str, Array]:
        """A part's weights in fp32, drawn now, as where there are none or `afresh`; or read when somebody asks."""
        folder, config = None if afresh else self.folder(part), self.part_config(part)
        if folder is None:
            return parts.initialise(part, config, self.config.seed)
        return {path: x.astype(np.float32) for path, x in parts.read(part, config, folder).items()}

    def part_configs(self, names: Iterable[str]) -> dict[str, Any]:
        """The sizes of several parts; InputError where they do not fit together."""
        configs = {name: self.part_config(name) for name in names}
        self.check_fit(configs)
        return configs

    def load_parts(
        self, names: Iterable[str], afresh: Collection[str] = ()
    ) -> tuple[dict[str, Any], dict[str, Array], dict[str, str]]:
        """Configs, weights and origins of several parts; those in `afresh` are drawn, whatever weights there are."""
        names = list(names)
        configs = self.part_configs(names)
        params = {path: x for name in names for path, x in self.params(name, name in afresh).items()}
        origins = {name: str((name not in afresh and self.folder(name)) or "random") for name in names}
        return configs, params, origins

    @property
    def template(self) -> Template:
        """The instruction around prompt and references."""
        return TEMPLATES[self.config.condition.template]

    def preprocessor(self) -> Preprocessor:
        """What turns prompts and references into arrays."""
        reads = self.config.condition.conditioner != "t5" or "mllm" in self.config.stages
        return Preprocessor(
            self.config,
            self.processor() if reads else None,
            self.tokenizer("t5_tokenizer"),
            truncate=self.config.condition.truncate,
        )

    def processor(self) -> Processor:
        """What turns texts and pictures into what the MLLM reads."""
        condition, vision = self.config.condition, self.part_config("mllm").vision
        tokens, patches = mllm_room(self.config, vision)
        return Processor(
            self.tokenizer(),
            vision,
            self.template,
            max_length=tokens,
            max_patches=patches,
            max_pixels=condition.mllm_max_pixels,
            min_pixels=condition.mllm_min_pixels,
            truncate=condition.truncate,
        )

    def captions(self) -> Captions | None:
        """Those of no video that `align` reads, if it does."""
        return Captions(self.config.data.captions) if self.config.align.caption_share else None

    @property
    def draws_critters(self) -> bool:
        """Whether the subjects are drawn, so that every attribute of theirs is known."""
        return self.config.data.source == "critters" and not self.config.data.subjects

    def source(self, split: str) -> Source:
        """The training or held-out data ("train", "validation"; "test" for critters only)."""
        return SOURCES[self.config.data.source](self._wanted(split))

    def clips(self, manifest: str | Path, split: str) -> Folder:
        """The clips of a manifest, as the config wants them; of one bucket, those that belong to it."""
        return folder_clips(self._wanted(split), manifest)

    def _wanted(self, split: str) -> Wanted:
        every = (dataclasses.replace(self, bucket=i) for i in (self.bucket, *self.others))
        records = tuple(one.records_folder for one in every)
        return Wanted(split, self.config.data, self.config.seed, self.bucket, self.others, records)

    def no_clip(self) -> InputError:
        """What is wrong where all buckets are empty."""
        names = ", ".join(Bucket(*sizes).name for sizes in self.config.data.buckets)
        return InputError(f"config.data.buckets: no clip belongs to any of {names}")
