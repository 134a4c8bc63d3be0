"""Generate a video from reference images of its subjects and a prompt, or the videos of a list.

Without --checkpoint the packaged demo is used, which draws critters at 64x64 pixels. With --requests the same command
continues where it stopped, and any number of processes share the list.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from absl import flags

from cinema_jax.commands import command
from cinema_jax.data.example import Reference
from cinema_jax.data.output import check_output
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.inputs.files import write_json
from cinema_jax.inputs.texts import check_whole
from cinema_jax.sampling import lists, options
from cinema_jax.sampling.references import reference

flags.adopt_module_key_flags(options)
REFERENCE = flags.DEFINE_multi_string(
    "reference",
    [],
    "Image of one subject, of any size and mode; transparency is its mask. Give the flag once for each subject.",
)
PROMPT = flags.DEFINE_string("prompt", None, "What happens in the video.")
NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What to steer away from.")
REQUESTS = flags.DEFINE_string(
    "requests",
    None,
    "In the place of --prompt and --reference: a list of videos, one JSON object a line, with prompt, references, "
    "seed, negative_prompt, expand_prompt, frames, height, width and output; docs/generate.md describes them.",
)
OUTPUT = flags.DEFINE_string(
    "output",
    "out.mp4",
    "File to write: .mp4, .gif or .png (numbered frames), or a folder. With --requests the folder of all videos.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
FRAMES = flags.DEFINE_integer("frames", None, "Number of frames, 4k+1; by default as in training.")
HEIGHT = flags.DEFINE_integer("height", None, "Pixels, a multiple of 16; by default as in training.")
WIDTH = flags.DEFINE_integer("width", None, "Pixels, a multiple of 16; by default as in training.")
SCALE = flags.DEFINE_integer(
    "scale",
    None,
    "Write the video this many times larger; by default a small .mp4 or .gif is enlarged to about 256 pixels.",
    lower_bound=1,
    upper_bound=16,
)
LOOP = flags.DEFINE_integer(
    "loop",
    None,
    "Write the video this many times in a row; by default a short .mp4 plays for about 4 seconds.",
    lower_bound=1,
    upper_bound=100,
)
EXPAND = flags.DEFINE_boolean(
    "expand_prompt",
    False,
    "Let the checkpoint's multimodal LLM see the pictures and write the whole prompt, which is printed, and kept in "
    "OUTPUT.json beside the video.",
)
INSTRUCTION = flags.DEFINE_string(
    "expand_instruction",
    None,
    "With --expand-prompt: a text file that says how the multimodal LLM is asked; {prompt} is the place of the prompt.",
)
BATCH = flags.DEFINE_integer("batch_size", 1, "With --requests: videos of one size sampled at once.", lower_bound=1)
KEEP_GOING = flags.DEFINE_boolean(
    "keep_going", False, "With --requests: leave out lines that are wrong, name them, and make the others."
)


def main() -> None:
    """Check everything that was asked for, then sample and write the video, or those of a list."""
    if REQUESTS.value is not None:
        return _list()
    for flag in (BATCH, KEEP_GOING):
        if flag.present:
            raise InputError(f"--{flag.name} goes with --requests, a list of videos")
    if INSTRUCTION.present and not EXPAND.value:
        raise InputError(f"--{INSTRUCTION.name} goes with --{EXPAND.name}")
    output = check_output(OUTPUT.value)
    asked = _asked()
    if not PROMPT.value.strip():
        raise InputError("--prompt is empty; say what happens in the video")
    for name, text in (("--prompt", PROMPT.value), ("--negative-prompt", NEGATIVE.value)):
        check_whole(text, name)
    pictures = [_picture(path, str(i)) for i, path in enumerate(REFERENCE.value)]
    command.start_processes()
    # Slow libraries are loaded from here on, when bad input has been refused.
    pipeline = options.pipeline()
    if not pictures and pipeline.needs_references:
        raise InputError(
            "no --reference was given; name at least one picture of a subject, for example "
            "--reference=examples/blue_bird.png of the project's checkout (four pictures lie in its folder examples/)"
        )
    requests = pipeline.requests(PROMPT.value, pictures, seed=SEED.value, negative_prompt=NEGATIVE.value)
    settings = pipeline.checked(requests, **asked)
    instruction = pipeline.instruction(INSTRUCTION.value) if EXPAND.value else None
    # All make the same video together.
    distributed.agree("the video that is asked for", [*_said(*requests, settings), instruction])
    options.keep_compiled()
    pipeline.load(options.tell, **options.placement(settings))
    if instruction is not None:
        requests = [pipeline.expanded(request, instruction) for request in requests]
        if distributed.is_first():
            print(f"expanded prompt: {requests[0].prompt}", flush=True)
    pipeline.warn_of_unknown({"--prompt": requests[0].prompt, "--negative-prompt": NEGATIVE.value})
    [video] = pipeline.generate(requests, settings)
    if not distributed.is_first():
        return
    if instruction is not None:
        about = {"prompt": video.asked, "expanded_prompt": video.prompt, "negative_prompt": NEGATIVE.value}
        about |= {"seed": video.seed, "settings": dataclasses.asdict(settings)}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output.with_name(f"{output.name}.json"), about)
    scale, loop = video.save(output, scale=SCALE.value, loop=LOOP.value)
    size = f"{settings.width}x{settings.height}"
    print(f"{output}: {len(video.frames)} frames of {size} at {video.fps:g} frames/s{_shown(scale, loop)}")


def _list() -> None:
    """Make the videos of `--requests`."""
    for flag in (PROMPT, REFERENCE, SEED, NEGATIVE):
        if flag.present:
            raise InputError(f"--{flag.name} is for one video; the lines of --requests say it themselves")
    if not OUTPUT.present:
        raise InputError("--requests needs --output, the folder of the videos")
    folder, asked = lists.check_folder(OUTPUT.value), _asked()
    found = lists.read(Path(REQUESTS.value), keep_going=KEEP_GOING.value)
    command.start_processes()
    # Slow libraries are loaded from here on, when bad input has been refused.
    from cinema_jax.sampling.many import Many

    written = {"scale": SCALE.value, "loop": LOOP.value}
    expand = {"expand": EXPAND.value, "instruction": INSTRUCTION.value}
    many = Many(options.pipeline(), found, folder, asked, written, **expand, keep_going=KEEP_GOING.value)
    options.keep_compiled()
    made = many.make(BATCH.value, options.tell, options.placement)
    if distributed.is_first():
        print(f"{folder}: {len(many.jobs)} videos, {made} of them made now")
    many.close()


def _asked() -> dict[str, Any]:
    """What was said of the sampler and the size."""
    return options.asked() | {"frames": FRAMES.value, "height": HEIGHT.value, "width": WIDTH.value}


def _said(request: Any, settings: Any) -> list[Any]:
    """A request and its settings, as JSON can say them."""
    pictures = [x for r in request.references for x in (r.image, r.mask) if x is not None]
    digests = [hashlib.sha256(x.tobytes()).hexdigest() for x in pictures]
    return [request.prompt, request.negative_prompt, request.seed, digests, dataclasses.asdict(settings)]


def _picture(path: str, subject: str) -> Reference:
    """The picture of one --reference."""
    several = [name for name in path.split(",") if name]
    if len(several) > 1 and not Path(path).exists() and Path(several[0]).exists():
        repeated = " ".join(f"--reference={name}" for name in several)
        raise InputError(f"--reference={path}: give the flag once for each picture: {repeated}")
    return reference(path, f"--reference={path}", subject)


def _shown(scale: int, loop: int) -> str:
    """How the file differs from what was generated."""
    changes = [f"enlarged x{scale}"] * (scale > 1) + [f"played {loop} times"] * (loop > 1)
    return f", {' and '.join(changes)} (--scale=1 --loop=1: as generated)" if changes else ""


if __name__ == "__main__":
    command.run(main, required=["prompt|requests"])
