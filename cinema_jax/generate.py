"""Generate a video from reference images of its subjects and a prompt.

Without --checkpoint the packaged demo is used, which draws critters at 64x64 pixels.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from absl import flags

from cinema_jax.commands import command
from cinema_jax.data.images import Picture, read_image
from cinema_jax.data.output import check_output, visible, write_video
from cinema_jax.devices import distributed
from cinema_jax.errors import InputError
from cinema_jax.inputs.texts import check_whole
from cinema_jax.sampling import options

flags.adopt_module_key_flags(options)
REFERENCE = flags.DEFINE_multi_string(
    "reference",
    [],
    "Image of one subject, of any size and mode; transparency is its mask. Give the flag once for each subject.",
)
PROMPT = flags.DEFINE_string("prompt", None, "What happens in the video.")
NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What to steer away from.")
OUTPUT = flags.DEFINE_string("output", "out.mp4", "File to write: .mp4, .gif or .png (numbered frames), or a folder.")
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


def main() -> None:
    """Check everything that was asked for, then sample and write the video."""
    output = check_output(OUTPUT.value)
    asked = options.asked()
    if not PROMPT.value.strip():
        raise InputError("--prompt is empty; say what happens in the video")
    for name, text in (("--prompt", PROMPT.value), ("--negative-prompt", NEGATIVE.value)):
        check_whole(text, name)
    pictures = [_picture(path) for path in REFERENCE.value]
    command.start_processes()
    # Imported here, so that bad input is refused before the slow libraries are loaded.
    from cinema_jax.data.example import Reference
    from cinema_jax.sampling.sampler import Request, check_references, progress_bar, sampler_of

    run = options.run()
    if not pictures and run.config.condition.conditioner != "t5":
        raise InputError(
            "no --reference was given; name at least one picture of a subject, for example "
            "--reference=examples/blue_bird.png of the project's checkout (four pictures lie in its folder examples/)"
        )
    check_references(run.config, len(pictures))
    references = tuple(Reference(p.image, p.mask, str(i)) for i, p in enumerate(pictures))
    request = Request(PROMPT.value, references, SEED.value, NEGATIVE.value)
    settings = options.checked(run, [request], **asked, frames=FRAMES.value, height=HEIGHT.value, width=WIDTH.value)
    # All make the same video together.
    distributed.agree("the video that is asked for", _said(request, settings))
    options.keep_compiled()
    sampler = sampler_of(run, options.tell, **options.placement(settings))
    options.warn_of_unknown(sampler.preprocessor, {"--prompt": request.prompt, "--negative-prompt": NEGATIVE.value})
    video = sampler([request], settings, progress_bar(settings.steps))[0]
    if not distributed.is_first():
        return
    fps = run.config.data.fps
    shown, scale, loop = visible(video, fps, output, SCALE.value, LOOP.value)
    write_video(output, shown, fps)
    print(
        f"{output}: {len(video)} frames of {settings.width}x{settings.height} at {fps:g} frames/s{_shown(scale, loop)}"
    )


def _said(request: Any, settings: Any) -> list[Any]:
    """A request and its settings, as JSON can say them."""
    pictures = [x for r in request.references for x in (r.image, r.mask) if x is not None]
    digests = [hashlib.sha256(x.tobytes()).hexdigest() for x in pictures]
    return [request.prompt, request.negative_prompt, request.seed, digests, dataclasses.asdict(settings)]


def _picture(path: str) -> Picture:
    """The picture of one --reference."""
    several = [name for name in path.split(",") if name]
    if len(several) > 1 and not Path(path).exists() and Path(several[0]).exists():
        repeated = " ".join(f"--reference={name}" for name in several)
        raise InputError(f"--reference={path}: give the flag once for each picture: {repeated}")
    return read_image(path)


def _shown(scale: int, loop: int) -> str:
    """How the file differs from what was generated."""
    changes = [f"enlarged x{scale}"] * (scale > 1) + [f"played {loop} times"] * (loop > 1)
    return f", {' and '.join(changes)} (--scale=1 --loop=1: as generated)" if changes else ""


if __name__ == "__main__":
    command.run(main, required=["prompt"])
