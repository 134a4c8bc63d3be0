"""Import, export and inspect weights, in the layouts of diffusers and transformers."""

import argparse
from pathlib import Path
from typing import Any

from cinema_jax.commands import command, usage
from cinema_jax.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
PRESETS = ("none", "phantom", "bindweave")
LAYOUTS = ("diffusers", "original")
# Weights of one byte.
CODES = ("int8", "fp8")
EXAMPLES = {
    "import": "--source=CogVideoX-2b --source=Qwen2-VL-2B-Instruct --output=checkpoint",
    "export": "--checkpoint=runs/demo --output=exported --dtype=bfloat16",
    "inspect": "--source=CogVideoX-2b",
}


def _parser(arguments: list[str]) -> argparse.Namespace:
    examples = [f"{name} {words}" for name, words in EXAMPLES.items()]
    parser = usage.Parser("python -m cinema_jax.convert", examples=examples, description=__doc__)
    processes = argparse.ArgumentParser(add_help=False)
    command.add_process_flags(processes)
    commands = parser.add_subparsers(required=True, dest="command", metavar="import | export | inspect")
    folder = (
        "A folder, or a repository of the Hugging Face hub (hf://owner/name): a pipeline of diffusers, one network as "
        "diffusers or transformers save it, a run, or an import. May be repeated. Required."
    )
    new = "The new folder. Required."

    def add(name: str, summary: str, **settings: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, examples=[EXAMPLES[name]], help=summary, description=summary, **settings)

    sub = add("import", "Gather published weights in one checkpoint.", parents=[processes])
    sub.add_argument(
        "--source",
        action="append",
        required=True,
        help=f"{folder} One may be a .safetensors file: other weights for the transformer of a folder.",
    )
    sub.add_argument("--output", type=Path, required=True, help=new)
    sub.add_argument(
        "--preset",
        choices=PRESETS,
        help="How the transformer reads references: phantom for Phantom's and RefAlign's weights, bindweave for "
        "BindWeave's; by default as the weights or the name of the .safetensors file say.",
    )
    sub.set_defaults(function=_import)

    sub = add("export", "Write a checkpoint as a folder that diffusers opens.", parents=[processes])
    sub.add_argument(
        "--checkpoint",
        required=True,
        help="The workdir of a run, an import, a pipeline of diffusers, or packaged. Required.",
    )
    sub.add_argument(
        "--init",
        default="",
        help="Where the parts that the run did not train are on this machine, if not where its config says: a folder "
        "or hub repository, as for config.init.",
    )
    sub.add_argument("--output", type=Path, required=True, help=new)
    sub.add_argument("--max-shard-size", default="5GB", help="Largest size of one file (default: %(default)s).")
    sub.add_argument(
        "--weights",
        choices=("ema", "params", *CODES),
        default="ema",
        help="Averaged or last weights (default: %(default)s); int8 or fp8: averaged ones, whose large kernels become "
        "codes of one byte with a scale for each output channel, for this project alone.",
    )
    sub.add_argument("--dtype", choices=DTYPES, help="Type of all tensors; by default as in the checkpoint.")
    sub.add_argument("--part", action="append", help="Export only this part; may be repeated. By default all.")
    sub.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="diffusers",
        help="original: the transformer alone, in one file under the names of the original Wan project (default: "
        "%(default)s).",
    )
    sub.set_defaults(function=_export)

    sub = add("inspect", "List what folders hold, and which parts fit each other.")
    sub.add_argument("--source", action="append", required=True, help=folder)
    sub.set_defaults(function=_inspect)
    return parser.parse_args(arguments[1:])


def _import(options: argparse.Namespace) -> None:
    command.start_processes(options)
    from cinema_jax.exchange.folders import check_new
    from cinema_jax.exchange.imports import import_checkpoint
    from cinema_jax.experiment import parts

    check_new(options.output)
    folders = [parts.checkpoint_folder(source) for source in options.source]
    preset = import_checkpoint(folders, options.output, options.preset)
    if preset != "none":
        print(f"its transformer reads references as {preset} does (--preset=none: it is plain text-to-video)")
    print(f"{options.output}: take it as --config.init of a training run or --checkpoint of generate")


def _export(options: argparse.Namespace) -> None:
    command.start_processes(options)
    from ml_dtypes import bfloat16
    from numpy import dtype

    from cinema_jax.devices import distributed
    from cinema_jax.exchange.exports import export_checkpoint, export_original
    from cinema_jax.exchange.folders import check_new
    from cinema_jax.experiment import parts
    from cinema_jax.experiment.run import Run
    from cinema_jax.experiment.standing import Standing, line

    def tell(standing: Standing) -> None:
        if distributed.is_first():
            print(line(options.checkpoint, standing), flush=True)

    check_new(options.output)
    run = Run.load(parts.checkpoint_folder(options.checkpoint), options.init)
    kind = dtype(bfloat16 if options.dtype == "bfloat16" else options.dtype) if options.dtype else None
    codes = options.weights if options.weights in CODES else None
    weights = "ema" if codes else options.weights
    if options.layout == "original":
        if codes:
            raise InputError(f"--weights={codes}: there is no original layout of such weights")
        if options.part not in (None, ["dit"]):
            raise InputError(f"--part={options.part[0]}: of the parts only dit has an original layout")
        print(export_original(run, options.output, weights=weights, dtype=kind, tell=tell))
        return
    export_checkpoint(
        run,
        options.output,
        weights=weights,
        codes=codes,
        tell=tell,
        dtype=kind,
        max_shard_size=options.max_shard_size,
        names=tuple(options.part) if options.part else None,
    )
    print(f"{options.output}: README.md in it says how to load it")


def _inspect(options: argparse.Namespace) -> None:
    from cinema_jax.exchange.inspection import inspect
    from cinema_jax.experiment import parts

    for line in inspect([parts.checkpoint_folder(source) for source in options.source]):
        print(line)


def main(options: argparse.Namespace) -> None:
    """Import, export or inspect."""
    options.function(options)


if __name__ == "__main__":
    command.with_huge_pages()
    command.run(main, _parser)
