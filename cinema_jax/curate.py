"""Make training data of raw videos: shots, quality, duplicates and captions, on one machine or on many.

Videos are cut at their shots; what is too short, too small, blurred, too dark or bright, still, shaky, framed in black
or shown before is rejected, each with its reason. The output is a folder that training reads with
--config.data.source=folder. The same command continues where it stopped, and does anew only what has changed.

Work is done by Apache Beam, in --workers processes of this machine, or by the runner that --runner names; its flags and
those of Beam are given as they are, such as --project and --region. All machines must reach the same folders.
"""

import logging
import sys
from pathlib import Path

from absl import flags

from cinema_jax.commands import command
from cinema_jax.errors import InputError
from cinema_jax.inputs.places import check_folder

VIDEOS = flags.DEFINE_string("videos", None, "The videos: a pattern, such as 'raw/**/*.mp4', in quotes.")
LIST = flags.DEFINE_string("list", None, "Or a list of them: .csv or .jsonl with video, caption and perhaps prompt.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for manifest.jsonl, videos, rejected.jsonl and report.html.")
OPTIONS = flags.DEFINE_string("options", None, 'What clips must be like: a JSON file, {"shots": {"longest": 6.0}}.')
MLLM = flags.DEFINE_string(
    "mllm",
    "none",
    "Who writes captions and finds subjects: a folder of Qwen2.5-VL, also hf://owner/name. none: captions are given, "
    "and no subjects are looked for.",
)
WORKERS = flags.DEFINE_integer("workers", 1, "Processes of this machine.", lower_bound=1)
SHARDS = flags.DEFINE_integer(
    "shards", 256, "Pieces into which the work is divided: what a run that was ended has to do again.", lower_bound=1
)
_EXTRA = "curate needs Apache Beam and PySceneDetect; install them with: pip install 'cinema_jax[curate]'"


def main(own: list[str]) -> None:
    """Curate; `own` are flags of Beam."""
    if VIDEOS.value and LIST.value:
        raise InputError("--videos and --list both say which videos; give one of them")
    if "://" in OUTPUT.value:
        raise InputError(f"--output={OUTPUT.value}: name a folder that all machines reach, such as a mounted bucket")
    check_folder(Path(OUTPUT.value))
    # Imported here, so that a wrong command line is refused before slow libraries are loaded.
    from cinema_jax.curation import curating, sources

    mllm = _mllm()
    config = curating.read_config(Path(OPTIONS.value) if OPTIONS.value else None)
    found = sources.listed(Path(LIST.value)) if LIST.value else sources.matching(VIDEOS.value)
    engine = _engine()
    options = engine.options(WORKERS.value, own)
    output = Path(OUTPUT.value).absolute()
    output.mkdir(parents=True, exist_ok=True)

    def run(work, shards, step):
        engine.run(work, shards, options, step)

    results = curating.curate(found, output, config, run, SHARDS.value, mllm)
    print(f"{output}: {len(results.clips)} clips of {len(found)} videos, {len(results.rejected)} rejected")
    if not results.clips:
        raise InputError(f"no clip is left; {output / curating.REPORT} and {curating.REJECTED} beside it say why")


def _mllm() -> str | None:
    """The multimodal LLM's folder, or None; raises `InputError` where it cannot find subjects."""
    if MLLM.value == "none":
        return None
    from cinema_jax.experiment import parts
    from cinema_jax.models.qwen_vl.config import Qwen25VLVisionConfig
    from cinema_jax.sampling.mllm import check_speaks

    folder = parts.checkpoint_folder(MLLM.value)
    config = parts.read_config("mllm", folder)
    check_speaks(config, str(folder))
    if not isinstance(config.vision, Qwen25VLVisionConfig):
        raise InputError(
            f"--mllm={MLLM.value} is no Qwen2.5-VL, which says in pixels where things are; others are not asked"
        )
    return str(Path(folder).absolute())


def _engine():
    """The module that runs Beam; raises `InputError` where the libraries are not installed."""
    # Beam warns everybody of libraries that only its readers of BigQuery need.
    logging.disable(logging.WARNING)
    try:
        import scenedetect  # noqa: F401

        from cinema_jax.curation import engine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("apache_beam", "scenedetect"):
            raise
        raise InputError(_EXTRA) from None
    finally:
        logging.disable(logging.NOTSET)
    return engine


def take_foreign() -> list[str]:
    """Takes words that are flags of Beam, and not of this command, out of the command line."""
    unknown = [word for word in sys.argv[1:] if word.startswith("--") and not _known(word)]
    if not unknown or {"--help", "-h"} & set(sys.argv):
        return []
    try:
        engine = _engine()
    except InputError:
        # The command says so itself, where nothing else is wrong.
        return []
    foreign = [word for word in unknown if engine.knows(word)]
    sys.argv = [word for word in sys.argv if word not in foreign]
    return foreign


def _known(word: str) -> bool:
    name = word[2:].partition("=")[0].replace("-", "_")
    return name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS


if __name__ == "__main__":
    flags_of_beam = take_foreign()
    command.run(lambda: main(flags_of_beam), required=["videos|list", "output"])
