"""The training loop: any stage, from its data to its finished weights."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import StageConfig
from cinema_jax.data.example import EncodedSource, Source
from cinema_jax.data.loader import Loader, LoaderConfig
from cinema_jax.data.pipeline import Examples, Mixture
from cinema_jax.devices import distributed, sharding, watchdog
from cinema_jax.devices.axes import WEIGHTS
from cinema_jax.devices.compilation import for_shapes
from cinema_jax.devices.interruption import Interrupted, Interruption
from cinema_jax.errors import InputError
from cinema_jax.experiment import parts, results
from cinema_jax.experiment.checkpoint import Checkpoints, complete_steps, digest
from cinema_jax.experiment.run import Run
from cinema_jax.inputs.typed import checked
from cinema_jax.training import latent_scale, reports, state
from cinema_jax.training.beginning import check_weights
from cinema_jax.training.goodput import Goodput
from cinema_jax.training.held_out import HeldOut
from cinema_jax.training.latents import encode_all, vae_key
from cinema_jax.training.metrics import MetricsWriter, Sink
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.training.phases import Phase, batch_shapes, check_batches, phase_of, phases, run_in
from cinema_jax.training.profile import Profile
from cinema_jax.training.progress import PERFORMANCE, Progress
from cinema_jax.training.remaining import Remaining
from cinema_jax.training.samples import trained_sampler
from cinema_jax.training.stages import STAGES, Stage, make_step
from cinema_jax.training.state import TrainState
from cinema_jax.training.step import TrainStep
from cinema_jax.training.watch import Slowest, Supply, check_unreadable
from cinema_jax.training.work import WorkCounter

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]


def train(run: Run, *, profile_steps: range = range(0), sinks: Sequence[Sink] = ()) -> None:
    """Run all stages that are not finished yet.

    Args:
        profile_steps: steps to be traced, in the first stage that comes to them.
        sinks: who gets the metrics beside the run's folder.
    """
    if run.config.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    profile = Profile(run.workdir / "profile", profile_steps)
    mesh = sharding.make_mesh(**vars(run.config.mesh))
    with run.lock(), Interruption() as interruption, jax.set_mesh(mesh):
        distributed.in_first(lambda: results.settle(run.workdir))
        finished = [name for name in run.config.stages if run.finished(name) is not None]
        distributed.agree("the finished stages", finished)
        # Of all stages: the last one's batch may not fit either, and is no reason to stop after days.
        check_batches(run.config, [name for name in run.config.stages if name not in finished], mesh)
        for name in run.config.stages:
            if name in finished:
                logger.info("%s: finished before", name)
            else:
                Trainer(run, STAGES[name], mesh, interruption, profile, sinks).run_stage()
        distributed.together("all stages are finished")


@dataclasses.dataclass(frozen=True)
class _Described:
    """What a checkpoint says of a stage beside its state."""

    stage: str
    # Where each part was read from, and the digests of what was.
    parts: dict[str, str]
    digests: dict[str, str]
    unreadable: dict[str, str]
    # Digests of what is frozen; checkpoints of before have none, and no shares.
    frozen: dict[str, str] = dataclasses.field(default_factory=dict)
    shares: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


class Trainer:
    """One stage of one run."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        mesh: Mesh,
        interruption: Interruption | None = None,
        profile: Profile | None = None,
        sinks: Sequence[Sink] = (),
    ):
        watchdog.begin(f"the start of {stage.name}")
        self.run, self.stage, self.mesh = run, stage, mesh
        self.interruption = interruption or Interruption()
        self.profile = profile or Profile(run.workdir / "profile", range(0))
        self.sinks = sinks
        self.goodput = Goodput(run.workdir / "goodput.json")
        self.config: StageConfig = run.config.of_stage(stage.name)
        self.seed = state.stage_seed(run.config.seed, stage.name)
        needed = stage.needed(run.config)
        configs, params, self.origins = run.load_parts(needed, stage.afresh(run.config))
        self.cinema = Cinema(run.config, configs)
        trained, _ = stage.trained(run.config, params)
        check_weights(stage.name, self.origins, trained)
        params = stage.started(params, self.origins, trained)
        self.digests = {name: digest(_of_part(params, name)) for name in needed}
        distributed.agree(f"the weights that {stage.name} starts from", self.digests)
        # A stage that goes on has its own from its checkpoint, which knows the frozen tensors that it began with.
        if not complete_steps(run.workdir / "checkpoints" / stage.name):
            results.check_written(run.workdir, run.written(), self.origins, self.digests)
        self.frozen_digests = results.digests_of_frozen(self.digests, params, trained)
        frozen = self.cinema.held({path: x for path, x in params.items() if path not in trained})
        self.frozen = sharding.place(frozen, mesh, WEIGHTS)
        self.optimizer = make_optimizer(self.config.optimizer, self.config.steps, self.config.earlier_rates)
        self.initial = {path: params[path].astype(self.cinema.state_dtype) for path in trained}
        self.work = WorkCounter(stage, self.cinema, trained)
        self.remaining = Remaining(run, stage.name)
        # Records that were replaced: their ids, and what is wrong with them. Those of this process alone until the next
        # log or checkpoint.
        self.unreadable: dict[str, str] = {}
        # Of the metrics that only some samples have, what was summed since the last log step.
        self.shares: dict[str, tuple[float, float]] = {}
        # One program for the videos of training and for those that are held out.
        self._encode = jax.jit(self.cinema.encode_video)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stage's, in order."""
        return phases(self.run.config, self.stage.name)

    def run_stage(self) -> None:
        """Train to the last step, from the last checkpoint if there is one; evaluate; write the weights."""
        workdir, name = self.run.workdir, self.stage.name
        with Checkpoints(
            workdir / "checkpoints" / name, keep=self.config.keep, keep_every=self.config.keep_every
        ) as checkpoints:
            current = self._initial_state(checkpoints)
            examples, held_out = self.training_examples(int(current.step)), self.held_out()
            start = int(current.step)
            self.goodput.begin(name, start)
            with MetricsWriter(
                workdir,
                stage=name,
                resume_step=start,
                total_steps=self.config.steps,
                title=self.remaining.title,
                sinks=self.sinks,
            ) as metrics:
                with self.interruption.after_the_step():
                    current, closing = self._loop(current, examples, held_out, checkpoints, metrics)
                logger.info("%s: waited for data in %.1f %% of the time", name, 100 * closing["waiting"])
                watchdog.begin(f"the closing report of {name}")
                configs, params, written = self._write_parts({**self.frozen, **current.ema}, held_out.batches)
                report = self.stage.closing_report(self.run.shown, configs, params, metrics)
            self.run.finish(
                name,
                {"steps": self.config.steps, **closing, **report}
                | {"parts": self.origins, "digests": self.digests, "written": written},
            )

    def _loop(self, current, examples, held_out, checkpoints, metrics) -> tuple[TrainState, dict[str, float]]:
        config, step_fn = self.config, self._step(current, examples)
        closing: dict[str, float] = {}
        batches, slowest = Supply(self.batches(examples, int(current.step))), Slowest()
        starts = {int(current.step), *(phase.first for phase in self.phases)}
        with self._progress(current, examples, batches, metrics) as progress:
            if int(current.step) == 0:
                # What the stage begins with: whatever comes later is compared with that.
                self.goodput.resume()
                metrics.write(0, held_out.evaluate(current, self.frozen))
                self.goodput.book("evaluation")
            for step, batch in batches:
                done = step + 1
                self.profile.before(done, progress.flush)
                if step in starts:
                    watchdog.begin(f"compiling the step of {self.stage.name}")
                    logger.info("%s: compiling, one to three minutes on a CPU", self.stage.name)
                else:
                    watchdog.step(f"step {done} of {self.stage.name}")
                with progress.dispatching(batch):
                    current, values = step_fn(current, self.frozen, batch)
                    if step in starts:
                        # Another host may still compile.
                        jax.block_until_ready(values)
                        metrics.show_bar()
                watchdog.step(f"step {done} of {self.stage.name}")
                batches.busy_with = values["skipped"]
                last, signal = done == config.steps, self.interruption.agreed()
                also = {}
                if last or done % config.log_every == 0:
                    self._share_unreadable(examples)
                    also = {PERFORMANCE + name: x for name, x in slowest.of_all(batches.waited).items()}
                progress.add(done, batch, values, replaced=len(self.unreadable), **also)
                if last or (config.eval_every and done % config.eval_every == 0):
                    with progress.pause("evaluation"):
                        closing = held_out.evaluate(current, self.frozen)
                    metrics.write(done, closing)
                if last or signal or done % config.checkpoint_every == 0:
                    watchdog.begin(f"the checkpoint of step {done} of {self.stage.name}")
                    with progress.pause("checkpoint"):
                        self._share_unreadable(examples)
                        checkpoints.save(current, self._description())
                    self.goodput.write(saved_step=done)
                if signal and not last:
                    checkpoints.wait()
                    raise Interrupted(signal, f"after step {done} of {self.stage.name}")
                if config.sample_every and done % config.sample_every == 0 and not last:
                    watchdog.begin(f"the contact sheet of step {done} of {self.stage.name}")
                    with progress.pause("evaluation"):
                        first, weights = self.run.shown, {**self.frozen, **current.ema}
                        sampler = trained_sampler(first, self.cinema.part_configs, weights)
                        reports.show_sheet(first, sampler, metrics, done)
                watchdog.step(f"the data of step {done + 1} of {self.stage.name}")
        metrics.end_bar()
        watchdog.begin(f"the end of {self.stage.name}")
        # A run killed between its last step and its record comes back here without a step to do.
        return current, (closing or held_out.evaluate(current, self.frozen)) | {"waiting": batches.waiting_share}

    def _step(self, current: TrainState, examples: Sequence[Mixture]) -> TrainStep:
        """The step; of several buckets, or of clips of several lengths, compiled for all of their shapes at once."""
        step = make_step(self.stage, self.cinema, self.optimizer, current)
        left = [(phase, mixture) for phase, mixture in zip(self.phases, examples, strict=True) if mixture.buckets]
        if all(len(mixture.buckets) == 1 and phase.frames is None for phase, mixture in left):
            return step
        watchdog.begin(f"compiling the steps of {self.stage.name}")
        batches, place = {}, sharding.batch_sharding(self.mesh)
        for phase, mixture in left:
            for number, bucket in enumerate(mixture.buckets):
                shapes = batch_shapes(bucket, phase)
                batches[f"{phase.purpose}, bucket {number}"] = {
                    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for name, x in shapes.items()
                }
        return for_shapes(step, (current, self.frozen), batches)

    def _progress(
        self, current: TrainState, examples: Sequence[Mixture], supply: Supply, metrics: MetricsWriter
    ) -> Progress:
        return Progress(
            metrics,
            supply,
            self.goodput,
            self.profile,
            self.work,
            self.remaining,
            start=int(current.step),
            log_every=self.config.log_every,
            last=self.config.steps,
            shares=self.shares,
            dropped=int(current.skipped),
            not_finite=lambda steps: self._not_finite(steps, examples),
        )

    def _initial_state(self, checkpoints: Checkpoints) -> TrainState:
        if checkpoints.latest is None:
            return state.create(self.initial, self.optimizer, self.mesh, seed=self.seed)
        restored, described = checkpoints.restore(state.abstract(self.initial, self.optimizer, self.mesh))
        saved = checked(described, _Described, "the checkpoint's description")
        results.check_frozen(self.stage.name, saved.frozen, self.frozen_digests, self.origins)
        # Of what the stage began with; random numbers may differ from machine to machine.
        self.origins, self.digests, self.unreadable = saved.parts, saved.digests, saved.unreadable
        self.shares = saved.shares
        logger.info("%s: goes on at step %d", self.stage.name, int(restored.step))
        return restored

    def training_examples(self, done: int) -> tuple[Mixture, ...]:
        """Those of each of the stage's phases; of one that is over after `done` steps, none."""
        found: dict[int | None, Mixture] = {}
        for phase in self.phases:
            if done < phase.end and phase.frames not in found:
                found[phase.frames] = self.examples("train", run=run_in(self.run, self.stage.name, phase))
        return tuple(found.get(phase.frames, Mixture(())) for phase in self.phases)

    def examples(self, split: str, augment: bool = True, run: Run | None = None) -> Mixture:
        """The split's examples, their videos encoded if the stage trains on them; of several buckets, those of each.

        `run`: as it is in the phase whose examples they are; None: in the main one.
        """
        run = run or self.run
        found = [self._examples(one, source, split, augment) for one, source in run.sources(split)]
        names = [[each.source.id(index) for index in each.indices] for each in found]
        distributed.agree(f"the {split} data", names)
        if split == "train" and self.stage.captions and (captions := self.run.captions()) is not None:
            distributed.agree("config.data.captions", captions.digest)
            found = [dataclasses.replace(each, captions=captions) for each in found]
        return Mixture(tuple(found))

    def _examples(self, run: Run, source: Source, split: str, augment: bool) -> Examples:
        preprocessor = run.preprocessor()
        held_out = split != "train"
        count = run.config.data.validation_videos if held_out else run.config.data.train_videos
        count = min(count or len(source), len(source))
        if not self.stage.on_latents(held_out):
            return Examples(source, preprocessor, range(count if held_out else len(source)), augment=augment)
        data, vae = run.config.data, self.cinema.part_configs["vae"]
        if isinstance(source, EncodedSource):
            source.check_vae(vae_key(self.digests["vae"], vae))
            return Examples(source, preprocessor, range(count), source.latents, augment=augment)
        clip = (1, data.frames, data.height, data.width, 3)
        clips = jax.ShapeDtypeStruct(clip, np.uint8)
        shape = jax.eval_shape(self.cinema.encode_video, self.cinema.shapes, clips).shape
        local = sharding.make_mesh(devices=jax.local_devices())
        latents = encode_all(
            source,
            count,
            self._encoder(local),
            shape[1:],
            self.run.workdir / "latents",
            split,
            [self.digests["vae"], repr(vae)],
            batch_size=local.size * max(1, 8 // local.size),
            threads=data.threads,
            # Decoders let go of Python's lock; drawing does not.
            workers=data.workers if data.source == "critters" else 0,
        )
        return Examples(source, preprocessor, latents.indices, latents.values, augment=augment)

    def _encoder(self, local: Mesh) -> Callable[[np.ndarray], jax.Array]:
        """Clips to latents, on devices of this process alone, which get all of the VAE's weights."""
        params = _of_part({**self.initial, **self.frozen}, "vae")
        params = {path: distributed.fetch(x) for path, x in params.items()}
        with jax.set_mesh(local):
            params = jax.device_put(params, sharding.replicated(local))

        def on_local(clips: np.ndarray) -> jax.Array:
            with jax.set_mesh(local):
                return self._encode(params, jax.device_put(clips, sharding.batch_sharding(local)))

        return on_local

    def held_out(self) -> HeldOut:
        """The held-out examples, and their evaluation."""
        return HeldOut(self.stage, self.cinema, self.mesh, self.examples("validation", augment=False))

    def batches(self, examples: Sequence[Mixture], start: int) -> Iterator[tuple[int, Batch]]:
        """Training batches from step `start` on, on the devices; `examples` of each phase."""
        for phase, mixture in zip(self.phases, examples, strict=True):
            if start >= phase.end:
                continue
            if phase.frames is not None or phase.first:
                logger.info("%s: to step %d in batches of %d", phase.purpose, phase.end, phase.batch_size)
            loader = self._loader(mixture, phase)
            for step, batch in loader.steps(max(start, phase.first), phase.end):
                yield step, sharding.global_batch(batch, self.mesh, phase.batch_size)

    def _share_unreadable(self, examples: Sequence[Mixture]) -> None:
        """What every process has replaced, in every process; raises InputError where it is too much."""
        for told in distributed.gather(self.unreadable):
            self.unreadable |= told
        check_unreadable(self.unreadable, max(map(len, examples)), "records")

    def _loader(self, examples: Mixture, phase: Phase, rows: Sequence[int] | None = None) -> Loader:
        def replaced(global_index: int, row: int, message: str) -> None:
            record = examples.id(row)
            logger.warning("%s was replaced: %s", record, message)
            self.unreadable[record] = message

        data, size = self.run.config.data, phase.batch_size
        config = LoaderConfig(
            size, self.seed, num_threads=data.threads, num_workers=data.workers, purpose=phase.purpose
        )
        make = functools.partial(examples.make, phase.example)
        rows = rows or sharding.local_rows(self.mesh, size)
        return Loader(examples.sizes, make, config, rows=rows, on_failure=replaced)

    def _not_finite(self, steps: list[int], examples: Sequence[Mixture]) -> InputError:
        """The end of a run whose loss or gradient is not finite any more; writes down what it was shown."""
        shown = {}
        for step in steps:
            phase = phase_of(step, self.phases)
            mixture = examples[self.phases.index(phase)]
            rows = self._loader(mixture, phase, range(phase.batch_size)).entries(step)
            shown[step + 1] = [mixture.id(row) for row in rows]
        file = self.run.workdir / "not_finite.json"
        if distributed.is_first():
            parts.write_json(file, {"stage": self.stage.name, "examples": shown})
        return InputError(
            f"{self.stage.name}: loss or gradient was not finite in steps {', '.join(map(str, shown))}, whose updates "
            f"were dropped; {file} names their examples. Mend them, or lower "
            f"config.{self.stage.name}.optimizer.learning_rate: the weights before these steps are intact"
        )

    def _description(self) -> dict[str, Any]:
        return dataclasses.asdict(
            _Described(self.stage.name, self.origins, self.digests, self.unreadable, self.frozen_digests, self.shares)
        )

    def _write_parts(self, params: Params, held_out: list[Batch]) -> tuple[dict[str, Any], Params, dict[str, str]]:
        """Write every part that was trained, if only in part, aside: `Run.finish` puts it into the run's `parts/`.

        Returns all parts' configs, their parameters as they were written, and the digest of each part that was, which
        process 0 alone knows.

        Every process must call this: they hand process 0 one tensor after the other.
        """
        configs, written, first = dict(self.cinema.part_configs), {}, distributed.is_first()
        aside = results.aside(self.run.workdir, self.stage.name)
        if first:
            results.clear(aside)
        for name in sorted({path.split("/")[0] for path in self.initial}):
            if name == "vae":
                configs[name], params = latent_scale.scaled(self.cinema, params, held_out)
            parts.write(name, configs[name], _of_part(params, name), aside / name)
            if first:
                there = parts.read(name, configs[name], aside / name)
                written[name] = digest({path: x.astype(np.float32) for path, x in there.items()})
        return configs, params, written


def _of_part(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {path: x for path, x in params.items() if path.startswith(f"{name}/")}
