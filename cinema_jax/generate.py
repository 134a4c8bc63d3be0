"""Generate a video of several subjects from pictures of each and a sentence:

    python -m cinema_jax.generate --checkpoint=runs/demo --reference=a.png --reference=b.png \\
        --prompt="the striped blue bird chases the red snail" --output=out.mp4
"""

import math

from absl import flags

from cinema_jax import command, distributed
from cinema_jax.data.images import read_image
from cinema_jax.data.output import check_output, write_video
from cinema_jax.diffusion.config import SOLVERS
from cinema_jax.errors import InputError

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The --workdir of a finished training run, an import, or a folder (or hub repository) in the layout of diffusers.",
)
REFERENCE = flags.DEFINE_multi_string(
    "reference",
    [],
    "A picture of one subject, of any size and mode; transparency is its mask. Repeatable.",
)
PROMPT = flags.DEFINE_string("prompt", None, "What happens.")
NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What to steer away from.")
OUTPUT = flags.DEFINE_string("output", "out.mp4", "Where to write: .mp4, .gif, .png (numbered frames) or a folder.")
SEED = flags.DEFINE_integer("seed", 0, "Decides the noise.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Sampler steps; the run's own number if not given.", lower_bound=1)
SOLVER = flags.DEFINE_enum("solver", None, SOLVERS, "How the noise is taken away; the run's own if not given.")
GUIDANCE_TEXT = flags.DEFINE_float("guidance_text", None, "Guidance towards the prompt; 1 means none.")
GUIDANCE_REFERENCE = flags.DEFINE_float("guidance_reference", None, "Guidance towards the references; 1 means none.")
FRAMES = flags.DEFINE_integer("frames", None, "Frames, 4k+1; as in training if not given.")
HEIGHT = flags.DEFINE_integer("height", None, "Pixels, a multiple of 16; as in training if not given.")
WIDTH = flags.DEFINE_integer("width", None, "Pixels, a multiple of 16; as in training if not given.")
CACHE = command.compilation_cache_flag("~/.cache/cinema_jax")


def main() -> None:
    """Check everything that was asked for, then sample and write the video."""
    output = check_output(OUTPUT.value)
    for flag in (GUIDANCE_TEXT, GUIDANCE_REFERENCE):
        if flag.value is not None and not math.isfinite(flag.value):
            raise InputError(f"--{flag.name} is {flag.value}; it must be a finite number (1 means no guidance)")
    if not PROMPT.value.strip():
        raise InputError("--prompt is empty; say what happens in the video")
    pictures = [read_image(path) for path in REFERENCE.value]
    command.start_processes()
    # Imported here, so that bad input is refused before the slow libraries are loaded.
    from tqdm import tqdm

    from cinema_jax import compilation
    from cinema_jax.data.example import Reference
    from cinema_jax.exchange import hub
    from cinema_jax.sampling import Request, sampler_of
    from cinema_jax.training.run import Run

    run = Run.load(hub.folder(CHECKPOINT.value))
    if not pictures and run.config.condition.conditioner != "t5":
        raise InputError("no --reference was given; name at least one picture of a subject")
    compilation.keep(CACHE.value, "~/.cache/cinema_jax")
    sampler = sampler_of(run)
    settings = sampler.settings(
        solver=SOLVER.value,
        steps=STEPS.value,
        guidance_text=GUIDANCE_TEXT.value,
        guidance_reference=GUIDANCE_REFERENCE.value,
        frames=FRAMES.value,
        height=HEIGHT.value,
        width=WIDTH.value,
    )
    references = tuple(Reference(p.image, p.mask, str(i)) for i, p in enumerate(pictures))
    request = Request(PROMPT.value, references, SEED.value, NEGATIVE.value)
    video = sampler([request], settings, lambda steps: tqdm(steps, total=settings.steps, desc="sample", unit="step"))[0]
    if not distributed.is_first():
        return
    write_video(output, video, run.config.data.fps)
    print(f"{output}: {len(video)} frames of {settings.width}x{settings.height} at {run.config.data.fps:g} frames/s")


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "prompt"])
    command.run(main)
