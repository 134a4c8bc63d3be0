"""The page: pictures and a prompt in, a video and the command that makes it again out."""

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from cinema_jax.errors import InputError
from cinema_jax.web.studio import Order, Stopped, Studio

# Seconds after which files of visitors are deleted, and between two looks for such files.
_KEPT, _LOOK = 3600, 600
_TITLE = "# Several subjects, one video\nOne picture of each subject, and one sentence that says what they do."
# The system's fonts: the page asks nobody else for anything.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = "#seen img {image-rendering: pixelated}"
# Pixels that small pictures are enlarged to, by whole factors.
_SHOWN = 192


def build(studio: Studio, folder: Path, examples: Sequence[tuple[list[str], str]]) -> gr.Blocks:
    """The page of a studio.

    Args:
        folder: for videos until visitors have them.
        examples: pictures and prompts to click on.
    """
    settings, stops = studio.settings(), _Stops()

    def said(error: Exception) -> gr.Error:
        return gr.Error(str(error), print_exception=False)

    def show(files: list[str] | None) -> list[tuple[Any, str]]:
        pictures = files or []
        try:
            seen = studio.seen(pictures)
        except InputError as error:
            raise said(error) from None
        factor = max(1, _SHOWN // max(seen.shape[1:3]))
        large = seen.repeat(factor, axis=1).repeat(factor, axis=2)
        return [(picture, Path(file).stem) for picture, file in zip(large, pictures, strict=True)]

    def make(
        files: list[str] | None,
        prompt: str,
        text: float,
        reference: float,
        steps: int,
        seed: int | None,
        negative: str,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio is told of it)
    ) -> Iterator[tuple[str, str]]:
        chosen = {"guidance_text": text, "guidance_reference": reference, "steps": int(steps)}
        order = Order(tuple(files or ()), prompt, negative, int(seed or 0), chosen)
        with tempfile.TemporaryDirectory(dir=folder) as place, stops.of(request) as stopped:
            output = Path(place) / "out.mp4"
            try:
                studio.make(order, output, lambda done, count: progress((done, count), unit="steps"), stopped)
            except (InputError, Stopped) as error:
                raise said(error) from None
            # The page copies the file before this goes on.
            yield str(output), studio.command(order)

    with gr.Blocks(title="cinema_jax", analytics_enabled=False, delete_cache=(_LOOK, _KEPT)) as page:
        gr.Markdown(_TITLE)
        with gr.Row():
            with gr.Column():
                files = gr.File(
                    label=f"References: 1 to {studio.most} pictures; a transparent background is the subject's mask",
                    file_count="multiple",
                    file_types=["image"],
                    allow_reordering=True,
                    height=140,
                    elem_id="files",
                )
                seen = gr.Gallery(
                    label="As the model sees them",
                    columns=studio.most,
                    height=240,
                    interactive=False,
                    object_fit="scale-down",
                    elem_id="seen",
                )
                prompt = gr.Textbox("", label="Prompt", placeholder="the bird chases the snail", elem_id="prompt")
                with gr.Row():
                    text = gr.Slider(1, 10, settings.guidance_text, step=0.5, label="Guidance: prompt")
                    reference = gr.Slider(1, 10, settings.guidance_reference, step=0.5, label="Guidance: references")
                with gr.Accordion("More", open=False):
                    steps = gr.Slider(1, 100, settings.steps, step=1, label="Steps")
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                    negative = gr.Textbox("", label="Negative prompt: what to steer away from")
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", elem_id="start")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop")
            with gr.Column():
                video = gr.Video(label="Video", autoplay=True, loop=True, height=420, elem_id="video")
                command = gr.Code(
                    label="The same from the command line", language="shell", wrap_lines=True, elem_id="command"
                )
        inputs = [files, prompt, text, reference, steps, seed, negative]
        gr.Examples([list(example) for example in examples], [files, prompt])
        files.change(show, files, seen, api_name=False)
        asked = gr.on([start.click, prompt.submit], stops.ask, None, None, queue=False, api_name=False)
        asked.then(
            make,
            inputs,
            [video, command],
            concurrency_limit=1,
            trigger_mode="once",
            api_name="generate",
        )
        stop.click(stops.set, None, None, queue=False)
        page.unload(stops.set)
    return page


class _Stops:
    """The videos that are being made or wait for their turn, by visitor, so that each stops only their own."""

    def __init__(self):
        self._events: dict[str | None, threading.Event] = {}

    def ask(self, request: gr.Request) -> None:
        """A visitor asks for a video, which may have to wait."""
        self._events.setdefault(request.session_hash, threading.Event())

    @contextlib.contextmanager
    def of(self, request: gr.Request) -> Iterator[threading.Event]:
        """A visitor's event, while their video is being made; set already if it was stopped before its turn came."""
        event = self._events.setdefault(request.session_hash, threading.Event())
        try:
            yield event
        finally:
            self._events.pop(request.session_hash, None)

    def set(self, request: gr.Request) -> None:
        """Stop the visitor's video, if there is one."""
        if event := self._events.get(request.session_hash):
            event.set()
