"""The page: pictures and a prompt in, a video and the command that makes it again out."""

import contextlib
import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from cinema_jax.errors import InputError
from cinema_jax.web import fragments
from cinema_jax.web.gate import Gate
from cinema_jax.web.studio import MOST_STEPS, MOST_VIDEOS, Order, Report, Stopped, Studio

# Seconds after which files of visitors are deleted, and between two looks for such files.
_KEPT, _LOOK = 3600, 600
# How programs call the function that makes a video.
ORDER = "generate"
# Seconds between two reports on a video.
_TICK = 0.3
# The system's fonts: the page asks nobody else for anything. Colours of text and buttons have the contrast that WCAG
# asks for (4.5 to 1), which Gradio's own do not.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
_ASSETS = Path(__file__).parents[1] / "assets/web"
CSS = (_ASSETS / "page.css").read_text()
HEAD = f"<script>{(_ASSETS / 'page.js').read_text()}</script>"


def build(studio: Studio, folder: Path, examples: Sequence[tuple[list[str], str]]) -> gr.Blocks:
    """The page of a studio.

    Args:
        folder: for videos until visitors have them.
        examples: pictures and prompts that become a video by one click.
    """
    stops = _Stops()

    def show(files: list[str] | None) -> str:
        pictures = files or []
        try:
            return fragments.pictures(studio.seen(pictures), [Path(file).stem for file in pictures])
        except InputError as error:
            return fragments.alert(str(error))

    def ready(files: list[str] | None, prompt: str, request: gr.Request) -> Any:
        enough = bool(prompt.strip() and (files or not studio.needs_pictures))
        return gr.Button(interactive=enough and not stops.busy(request))

    def move(files: list[str], event: gr.EventData) -> list[str]:
        moved = list(files)
        moved.insert(event.place, moved.pop(event.picture))
        return moved

    def pick(event: gr.EventData) -> tuple[list[str], str, float]:
        return *examples[event.number], time.monotonic()

    def begin(request: gr.Request) -> tuple[Any, ...]:
        before = stops.ask(request)
        said = f"Waiting for {before} other video{'s' * (before > 1)}." if before else "Starting."
        return gr.Button(interactive=False), gr.Button(visible=True), gr.HTML(busy="disabled"), fragments.status(said)

    def end(files: list[str] | None, prompt: str, request: gr.Request) -> tuple[Any, ...]:
        return ready(files, prompt, request), gr.Button(visible=False), gr.HTML(busy="")

    def make(
        files: list[str] | None,
        prompt: str,
        text: float,
        reference: float,
        steps: int,
        seed: int | None,
        negative: str,
        videos: int,
        last: int,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, str, Any]]:
        chosen = {"guidance_text": text, "guidance_reference": reference, "steps": int(steps)}
        first = last + 1 if seed is None else int(seed)
        order = Order(tuple(files or ()), prompt, negative, first, chosen)
        nothing, begun = gr.skip(), time.monotonic()
        with tempfile.TemporaryDirectory(dir=folder) as place, stops.of(request) as stopped:
            try:
                for number in range(checked_videos(videos)):
                    order = dataclasses.replace(order, seed=first + number)
                    # Its name tells the page, and whoever keeps it, the seed; a video that is made again is another.
                    output = Path(place) / f"seed_{order.seed}_at_{time.strftime('%H%M%S')}.mp4"
                    for report in followed(studio, order, output, stopped):
                        said = fragments.status("Stopping after this step.")
                        if not stopped.is_set():
                            said = fragments.progress(report, time.monotonic() - begun, (number + 1, int(videos)))
                        yield nothing, nothing, said, nothing
                    done = f"Done in {time.monotonic() - begun:.0f} s, seed {order.seed}.{studio.unknown(order)}"
                    # The page copies the file before this goes on.
                    yield str(output), studio.command(order), fragments.status(done), order.seed
            except Stopped:
                yield nothing, nothing, fragments.status("Stopped."), nothing
            except InputError as error:
                yield nothing, nothing, fragments.status(f"{error}."), nothing

    with gr.Blocks(title="cinema_jax", analytics_enabled=False, delete_cache=(_LOOK, _KEPT)) as page:
        gr.HTML(fragments.header(studio.about()), elem_id="header", apply_default_css=False)
        gallery = gr.HTML(
            fragments.examples(examples),
            html_template=fragments.GALLERY,
            js_on_load=fragments.CLICKED,
            busy="",
            apply_default_css=False,
            elem_id="examples",
            visible=bool(examples),
        )
        with gr.Row():
            with gr.Column():
                files = gr.File(
                    label=f"References: 1 to {studio.most} pictures",
                    file_count="multiple",
                    file_types=["image"],
                    allow_reordering=True,
                    height=130,
                    elem_id="files",
                )
                seen = gr.HTML(show(None), js_on_load=fragments.MOVED, elem_id="seen", apply_default_css=False)
                prompt = gr.Textbox("", label="Prompt", placeholder="the bird chases the snail", elem_id="prompt")
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", elem_id="start", interactive=False)
                    stop = gr.Button("Stop", elem_id="stop", visible=False)
            with gr.Column():
                said = fragments.status("Give pictures and a prompt, or click an example.")
                status = gr.HTML(said, elem_id="status", apply_default_css=False)
                video = gr.Video(
                    label="Video", autoplay=True, loop=True, height=280, buttons=["download"], elem_id="video"
                )
                gr.HTML(fragments.STRIP, elem_id="strip", apply_default_css=False)
                settings, seed, again = _settings(studio)
                with gr.Accordion("The same from the command line", open=False, elem_id="line"):
                    command = gr.Textbox(
                        "", label="Command", lines=4, interactive=False, buttons=["copy"], elem_id="command"
                    )
        picked, last = gr.State(0.0), gr.State(-1)
        again.click(lambda seed: max(seed, 0), last, seed, show_progress="hidden", api_name=False)
        seen.click(move, files, files, show_progress="hidden", api_name=False)
        gallery.click(pick, None, [files, prompt, picked], show_progress="hidden", api_name=False)
        files.change(show, files, seen, show_progress="hidden", api_name=False)
        gr.on([files.change, prompt.change], ready, [files, prompt], start, queue=False, api_name=False)
        asked = gr.on(
            [start.click, prompt.submit, picked.change],
            begin,
            None,
            [start, stop, gallery, status],
            queue=False,
            show_progress="hidden",
            js=fragments.SHOW_VIDEO,
            api_name=False,
        )
        made = asked.then(
            make,
            [files, prompt, *settings, last],
            [video, command, status, last],
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="hidden",
            api_name=ORDER,
        )
        made.then(
            end,
            [files, prompt],
            [start, stop, gallery],
            queue=False,
            show_progress="hidden",
            js=fragments.SHOW_VIDEO,
            api_name=False,
        )
        stop.click(stops.set, None, None, queue=False, api_name=False)
        page.unload(stops.set)
    return page


def gate(page: gr.Blocks, folder: Path, limits: Mapping[str, Any]) -> Middleware:
    """What stands before the page's server: see `gate.Gate`; `folder` is where uploads lie."""

    def waiting() -> list[Any]:
        queue = page._queue
        events = [event for each in queue.event_queue_per_concurrency_id.values() for event in each.queue]
        return events + [event for job in queue.active_jobs for event in job or ()]

    def ordering(function: int | str) -> bool:
        made = [fn for fn in page.fns.values() if fn.api_name == ORDER]
        return any(function in (fn._id, fn.api_name) for fn in made)

    return Middleware(Gate, folder=folder, waiting=waiting, ordering=ordering, **limits)


def followed(studio: Studio, order: Order, output: Path, stopped: threading.Event) -> Iterator[Report]:
    """Make a video; how far it is, again and again until it is there. Raises as `Studio.make` does."""
    reports: list[Report] = []
    with ThreadPoolExecutor(1) as worker:
        job = worker.submit(studio.make, order, output, reports.append, stopped)
        try:
            while not wait([job], _TICK).done:
                if reports:
                    yield reports[-1]
        except GeneratorExit:
            # A visitor who leaves waits for nothing.
            stopped.set()
            raise
        job.result()


def checked_videos(count: float | int) -> int:
    """How many videos an order is for. Raises `InputError` where it is for more than one may ask for."""
    if not 1 <= count <= MOST_VIDEOS:
        raise InputError(f"{count} videos were asked for; from 1 to {MOST_VIDEOS} are made at a time")
    return int(count)


def _settings(studio: Studio) -> tuple[list[gr.components.Component], gr.Number, gr.Button]:
    """What a visitor may set: the arguments of `make` after the prompt; of them the seed; and what fills that in."""
    own = studio.settings()
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        text = gr.Slider(1, 10, own.guidance_text, step=0.5, label="Guidance: prompt", info="1 means none")
        reference = gr.Slider(
            1, 10, own.guidance_reference, step=0.5, label="Guidance: references", info="1 means none"
        )
        steps = gr.Slider(1, MOST_STEPS, own.steps, step=1, label="Steps")
        seed = gr.Number(
            None, label="Seed", info="Empty: another one each time", precision=0, minimum=0, maximum=2**31 - 1
        )
        again = gr.Button("The last seed again", size="sm", elem_id="again")
        negative = gr.Textbox("", label="Negative prompt: what to steer away from")
        videos = gr.Slider(1, MOST_VIDEOS, 1, step=1, label="Videos", info="One after the other, of seeds in a row")
    return [text, reference, steps, seed, negative, videos], seed, again


class _Stops:
    """The videos that are being made or wait for their turn, by visitor, so that each stops only their own."""

    def __init__(self):
        self._events: dict[str | None, threading.Event] = {}

    def ask(self, request: gr.Request) -> int:
        """A visitor asks for a video, which may have to wait for others: says for how many."""
        before = len(self._events.keys() - {request.session_hash})
        self._events.setdefault(request.session_hash, threading.Event())
        return before

    def busy(self, request: gr.Request) -> bool:
        """Whether a video of the visitor is being made or waits."""
        return request.session_hash in self._events

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
