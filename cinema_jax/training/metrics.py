"""Where a run's numbers and pictures go: JSON lines, TensorBoard, and a progress bar."""

import io
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from cinema_jax.errors import InputError
from cinema_jax.inputs.files import parse_json, write_text
from cinema_jax.inputs.typed import checked

logger = logging.getLogger(__name__)

# Takes what else is to be told of a step's scalars: (stage, step, values). It must not block.
Sink = Callable[[str, int, Mapping[str, float]], None]


def truncate(path: Path, stage: str, step: int) -> None:
    """Drop a stage's lines past `step` from a file of JSON lines, and such as were cut off or damaged.

    Of a stage that begins anew, at step 0, all: also what was measured before its first step.
    """
    if not path.exists():
        return
    kept, damaged = [], 0
    for line in path.read_bytes().decode(errors="replace").split("\n")[:-1]:
        try:
            row = checked(parse_json(line, "a line"), dict[str, Any], "a line")
            row_stage, row_step = checked(row.get("stage"), str, "stage"), checked(row.get("step"), int, "step")
        except InputError:
            damaged += 1
            continue
        if row_stage != stage or row_step <= step > 0:
            kept.append(f"{line}\n")
    if damaged:
        logger.warning("%s: %d damaged lines are left out", path, damaged)
    write_text(path, "".join(kept))


class MetricsWriter:
    """Writes the metrics of one stage. Only the first process writes; the others may call everything.

    `metrics.jsonl` has one object a line: `step`, `stage` and the values (null where not finite). TensorBoard files are
    in `tensorboard/<stage>`, with the finite ones. A step is the number of batches done: 0 before
    the first.

    Args:
        workdir: the run's folder; made if missing.
        stage: the name of the stage.
        resume_step: the restored step; whatever was written after it is dropped, so that no step appears twice.
        total_steps: the stage's length, for the progress bar.
        title: what that calls the stage; empty: its name.
        sinks: who gets the same scalars (W&B).
    """

    def __init__(
        self,
        workdir: Path,
        *,
        stage: str,
        resume_step: int = 0,
        total_steps: int | None = None,
        title: str = "",
        sinks: Sequence[Sink] = (),
    ):
        self._stage, self._sinks = stage, sinks
        self.primary = jax.process_index() == 0
        if not self.primary:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        truncate(path, stage, resume_step)
        self._lines = path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=resume_step + 1)
        self._done, self._total, self._bar, self._title = resume_step, total_steps, None, title or stage

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars (numbers or arrays without axes) of a step."""
        if not self.primary:
            return
        numbers = {name: float(value) for name, value in values.items()}
        row = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self._lines.write(json.dumps({"step": step, "stage": self._stage, **row}) + "\n")
        for name, number in numbers.items():
            if math.isfinite(number):
                self._tensorboard.add_scalar(name, number, step)
        for sink in self._sinks:
            sink(self._stage, step, numbers)

    def show_bar(self) -> None:
        """Show the progress bar, which counts time from here on: not the compiler's."""
        if self.primary and self._bar is None:
            # In a log file every refresh is a line of its own.
            interval = 0.2 if sys.stderr.isatty() else 30
            self._bar = tqdm(
                desc=self._title,
                total=self._total,
                initial=self._done,
                unit="step",
                mininterval=interval,
                dynamic_ncols=True,
            )

    def progress(self, step: int, left: float | None = None, **values: float) -> None:
        """Move the bar to `step`; it shows the values (the loss, say), steps a second and the stage's time left.

        `left`: seconds until the whole run is done, if that is known.
        """
        if not self.primary:
            return
        self.show_bar()
        if values:
            shown = {name: f"{float(value):.4g}" for name, value in values.items()}
            if left is not None:
                shown["all_done_in"] = f"{tqdm.format_interval(left)}"
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def end_bar(self) -> None:
        """Leave the progress bar as it stands: after the last step, evaluations and samples show bars of their own."""
        if self.primary and self._bar is not None:
            self._bar.close()

    def images(self, step: int, name: str, images: UInt8[np.ndarray, "N height width 3"]) -> None:
        """Pictures side by side under one name, for TensorBoard."""
        if self.primary:
            self._tensorboard.add_images(name, images, step, dataformats="NHWC")

    def video(self, step: int, name: str, video: UInt8[np.ndarray, "frames height width 3"], fps: float = 8.0) -> None:
        """A video for TensorBoard, as an animated GIF."""
        if not self.primary:
            return
        frames = [Image.fromarray(frame) for frame in video]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)
        image = Summary.Image(
            height=video.shape[1], width=video.shape[2], colorspace=3, encoded_image_string=buffer.getvalue()
        )
        # `add_video` of tensorboardX would want moviepy for the same GIF.
        self._tensorboard.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        """Write out everything."""
        if self.primary:
            self.end_bar()
            self._tensorboard.close()
            self._lines.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
