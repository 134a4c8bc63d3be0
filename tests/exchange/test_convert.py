"""Weights in and out through the importer and the exporter, compared with the originals bit for bit."""

import filecmp
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import diffusers
import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from absl import flags
from absl.testing import flagsaver
from PIL import Image
from released import PROMPT, pipeline, qwen
from tiny import process_environment, random_run, tiny_config

from cinema_jax import convert, generate
from cinema_jax.config import parse
from cinema_jax.devices import sharding
from cinema_jax.errors import InputError
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.exchange.imports import import_checkpoint
from cinema_jax.exchange.inspection import inspect
from cinema_jax.experiment import checkpoint, parts
from cinema_jax.experiment.run import Run
from cinema_jax.training import state
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.weights.tensors import WeightError, open_tensors
from configs import cogvideox_2b

# Folder of a part, the class that loads it, and the precision it is published in.
CLASSES = {
    "transformer": (diffusers.CogVideoXTransformer3DModel, torch.bfloat16),
    "vae": (diffusers.AutoencoderKLCogVideoX, torch.float16),
    "text_encoder": (transformers.T5EncoderModel, torch.float32),
}


KINDS = {"2b": ("ddim", False), "5b": ("dpm", True)}
one_kind = pytest.mark.parametrize("sources", ["2b"], indirect=True)


@pytest.fixture(scope="module", params=KINDS)
def sources(request, tmp_path_factory):
    """A pipeline, each part in another precision, and an MLLM, as published."""
    folder = tmp_path_factory.mktemp("sources")
    scheduler, rotary = KINDS[request.param]
    made = pipeline(folder, rotary, scheduler)
    for name, (_, dtype) in CLASSES.items():
        getattr(made, name).to(dtype)
    made.save_pretrained(folder / "published", max_shard_size="40KB")
    qwen(folder / "qwen")
    return folder / "published", folder / "qwen"


@pytest.fixture(scope="module")
def imported(sources, tmp_path_factory):
    """Both in one checkpoint."""
    output = tmp_path_factory.mktemp("imported") / "checkpoint"
    import_checkpoint(sources, output)
    return output


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    """The checkpoint as a folder for diffusers, in small files."""
    output = tmp_path_factory.mktemp("exported") / "export"
    export_checkpoint(Run.load(imported), output, max_shard_size="30KB")
    return output


def load(kind, folder, dtype="auto"):
    """By the original class, which must find every tensor and no other."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, torch_dtype=dtype)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_same_states(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.dtype == other[name].dtype
        assert torch.equal(x, other[name]), name


def files_of(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def assert_same_files(one, other):
    assert files_of(one) == files_of(other)
    for name in files_of(one):
        assert filecmp.cmp(one / name, other / name, shallow=False), name


@pytest.mark.parametrize("part", CLASSES)
def test_every_part_comes_back_bit_for_bit(sources, exported, part):
    kind, dtype = CLASSES[part]
    assert_same_states(load(kind, sources[0] / part, dtype), load(kind, exported / part, dtype))
    kinds = {str(x.dtype) for x in open_tensors(exported / part).values()}
    assert kinds == {str(dtype).removeprefix("torch.")}


def test_the_mllm_comes_back_bit_for_bit(sources, exported):
    kind = transformers.Qwen2VLForConditionalGeneration
    original, back = load(kind, sources[1]), load(kind, exported / "mllm")
    assert_same_states(original, back)
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(original(input_ids=tokens).logits, back(input_ids=tokens).logits)


def test_the_pipeline_loads_by_itself_and_makes_the_same_frames(sources, exported):
    def frames(folder):
        loaded = diffusers.CogVideoXPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        size = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 40}
        return loaded(PROMPT, num_inference_steps=2, generator=generator, output_type="np", **size).frames

    np.testing.assert_array_equal(frames(sources[0]), frames(exported))


def test_an_export_imported_and_exported_again_is_the_same(exported, imported, tmp_path):
    import_checkpoint([exported], tmp_path / "again")
    export_checkpoint(Run.load(tmp_path / "again"), tmp_path / "second", max_shard_size="30KB")
    for folder in ("transformer", "vae", "text_encoder", "mllm", "tokenizer", "scheduler"):
        assert_same_files(exported / folder, tmp_path / "second" / folder)
    assert_same_files(imported / "parts" / "t5_tokenizer", tmp_path / "again" / "parts" / "t5_tokenizer")


@one_kind
def test_a_pipeline_is_exported_without_an_import(sources, exported, tmp_path):
    export_checkpoint(Run.load(sources[0]), tmp_path / "direct", max_shard_size="30KB")
    for folder in ("transformer", "vae", "text_encoder"):
        assert_same_files(exported / folder, tmp_path / "direct" / folder)


def test_files_are_no_larger_than_asked_and_the_index_names_all(exported):
    for folder, stem in (("transformer", parts.DIFFUSERS), ("text_encoder", "model")):
        files = sorted((exported / folder).glob("*.safetensors"))
        assert len(files) > 1
        index = json.loads((exported / folder / f"{stem}.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {file.name for file in files}
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in open_tensors(exported / folder).values())


def generated(folder, output):
    """The bytes of a picture that `generate` makes of a checkpoint."""
    arguments = [f"--checkpoint={folder}", f"--prompt={PROMPT}", f"--output={output}", "--steps=1", "--frames=1"]
    with flagsaver.flagsaver(reference=[]):
        flags.FLAGS(["generate", *arguments])
        generate.main()
    return output.read_bytes()


@one_kind
def test_generate_takes_what_was_published_imported_and_exported(sources, imported, exported, tmp_path):
    made = {generated(folder, tmp_path / f"{i}.gif") for i, folder in enumerate((sources[0], imported, exported))}
    assert len(made) == 1


@one_kind
@pytest.mark.parametrize(("name", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_another_precision_rounds_as_torch_does(sources, tmp_path, name, torch_dtype):
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    export_checkpoint(Run.load(sources[0]), tmp_path / "out", dtype=dtype, names=("dit", "t5"))
    original = load(CLASSES["text_encoder"][0], sources[0] / "text_encoder").to(torch_dtype).state_dict()
    back = open_tensors(tmp_path / "out" / "text_encoder")
    assert original.keys() == back.keys()
    for key, x in original.items():
        np.testing.assert_array_equal(back[key].view(np.uint16), x.view(torch.uint16).numpy(), key)
    assert json.loads((tmp_path / "out" / "text_encoder" / "config.json").read_text())["dtype"] == name
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "CinemaPipeline"


def test_a_number_too_large_for_the_precision_is_refused(tmp_path):
    config = transformers.T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    config.feed_forward_proj = "gated-gelu"
    config.is_gated_act, config.dense_act_fn = True, "gelu_new"
    model = transformers.T5EncoderModel(config)
    torch.nn.init.constant_(model.shared.weight, 1e5)
    model.save_pretrained(tmp_path / "t5")
    import_checkpoint([tmp_path / "t5"], tmp_path / "checkpoint")
    with pytest.raises(WeightError, match=r"embed_tokens\.weight holds numbers that are not finite, as float16"):
        export_checkpoint(Run.load(tmp_path / "checkpoint"), tmp_path / "out", dtype=np.dtype(np.float16))
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of random parts; its last stage, which trains aligner and transformer, is at step 3 of 5."""
    run = Run.load(random_run(tmp_path_factory.mktemp("runs") / "run"))
    params = {path: np.asarray(x) for name in ("aligner", "dit") for path, x in run.params(name).items()}
    mesh = sharding.make_mesh()
    optimizer = make_optimizer(run.config.finetune.optimizer, 5)
    made = state.create(params, optimizer, mesh, seed=0)
    made = state.TrainState(
        step=made.step + 3,
        params=jax.tree.map(lambda x: x + 1, made.params),
        ema=jax.tree.map(lambda x: x + 2, made.ema),
        opt_state=made.opt_state,
        key=made.key,
        skipped=made.skipped,
    )
    with checkpoint.Checkpoints(run.workdir / "checkpoints" / "finetune") as checkpoints:
        checkpoints.save(made, {"stage": "finetune"})
    return run, params


@pytest.mark.parametrize(("weights", "added"), [("ema", 2), ("params", 1)])
def test_averaged_or_last_weights_of_a_run_are_exported(run, tmp_path, weights, added):
    run, params = run
    export_checkpoint(run, tmp_path / "out", weights=weights)
    back = Run.load(tmp_path / "out")
    for name in ("aligner", "dit"):
        for path, x in back.params(name).items():
            np.testing.assert_array_equal(x, params[path] + np.float32(added))
    for path, x in back.params("t5").items():
        np.testing.assert_array_equal(x, run.params("t5")[path])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "at step 3" in card
    assert ("moving average" in card) == (weights == "ema")
    assert str(run.workdir.parent) not in card


def test_generate_with_references_takes_the_export_of_a_run(run, tmp_path):
    run, _ = run
    (run.workdir / "stages").mkdir()
    (run.workdir / "stages" / "finetune.json").write_text('{"steps": 5, "eval_loss": 0.5, "parts": {}, "digests": {}}')
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    export_checkpoint(run, tmp_path / "out")
    made = set()
    for folder in (run.workdir, tmp_path / "out"):
        output = tmp_path / "out.gif"
        arguments = [f"--checkpoint={folder}", "--prompt=the red bird jumps up", f"--output={output}", "--steps=1"]
        with flagsaver.flagsaver(reference=[]):
            flags.FLAGS(["generate", *arguments, f"--reference={tmp_path / 'a.png'}"])
            generate.main()
        made.add(output.read_bytes())
    (run.workdir / "stages" / "finetune.json").unlink()
    assert len(made) == 1
    diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "out", subfolder="vae")
    diffusers.CogVideoXTransformer3DModel.from_pretrained(tmp_path / "out", subfolder="transformer")
    assert "eval_loss 0.5" in (tmp_path / "out" / "README.md").read_text()


_TWO = """
import sys
import jax
from pathlib import Path
rank, port, run, output = int(sys.argv[1]), *sys.argv[2:5]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
import numpy as np
from cinema_jax.experiment import checkpoint
from cinema_jax.devices import sharding
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.exchange.imports import import_checkpoint
from cinema_jax.training import state
from cinema_jax.training.optimizer import make_optimizer
from cinema_jax.experiment.run import Run
run = Run.load(Path(run))
mesh = sharding.make_mesh(data=1, fsdp=8)
params = {path: x for name in ("aligner", "dit") for path, x in run.params(name).items()}
made = state.create(params, make_optimizer(run.config.finetune.optimizer, 5), mesh, seed=0)
assert not made.params["dit/proj_out/kernel"].is_fully_addressable
with checkpoint.Checkpoints(run.workdir / "checkpoints" / "finetune") as checkpoints:
    checkpoints.save(made, {"stage": "finetune"})
wrote = []
import cinema_jax.weights.shards as shards
write = shards.write_tensors
shards.write_tensors = lambda path, tensors: (wrote.append(path.name), write(path, tensors))
export_checkpoint(run, Path(output), weights="params", max_shard_size="30KB")
print("wrote", len(wrote))
import_checkpoint([Path(output)], Path(output + "_again"))
"""


def test_two_processes_export_what_one_does(run, tmp_path):
    """Trained and saved over 8 devices of two processes; each process writes files of its own."""
    source, _ = run
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", source.workdir, copy], check=True)
    subprocess.run(["rm", "-r", copy / "checkpoints"], check=True)
    environment = process_environment(devices=4)
    port = str(20000 + os.getpid() % 20000)
    command = [sys.executable, "-c", _TWO]
    processes = [
        subprocess.Popen([*command, str(rank), port, copy, tmp_path / "two"], env=environment, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counts = [int(text.split("wrote")[1].split()[0]) for text in said]
    assert min(counts) > 1
    export_checkpoint(Run.load(copy), tmp_path / "one", weights="params", max_shard_size="30KB")
    assert sum(counts) == len(list((tmp_path / "one").rglob("*.safetensors")))
    assert_same_files(tmp_path / "one", tmp_path / "two")
    one, again = Run.load(tmp_path / "one"), Run.load(tmp_path / "two_again")
    for path, x in one.params("dit").items():
        np.testing.assert_array_equal(again.params("dit")[path], x)


_KILLED = """
import os, signal, sys
from pathlib import Path
from cinema_jax.weights import shards
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.experiment.run import Run
check = shards.check_finite
def dies(block, name):
    if name.startswith(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    check(block, name)
shards.check_finite = dies
export_checkpoint(Run.load(Path(sys.argv[1])), Path(sys.argv[2]), max_shard_size="30KB")
"""


@one_kind
def test_a_killed_export_leaves_nothing_that_looks_whole(sources, exported, tmp_path):
    command = [sys.executable, "-c", _KILLED, sources[0], tmp_path / "out", "transformer_blocks.1"]
    assert subprocess.run(command, env=process_environment(), check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("model_index.json"))
    export_checkpoint(Run.load(sources[0]), tmp_path / "out", max_shard_size="30KB")
    assert_same_files(exported / "transformer", tmp_path / "out" / "transformer")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def command_line(*arguments):
    """`python -m cinema_jax.convert`, in this process."""
    convert.main(convert._parser(["convert", *map(str, arguments)]))


@one_kind
def test_the_three_commands_work_from_the_command_line(sources, tmp_path, capsys):
    command_line("import", "--source", sources[0], "--source", sources[1], "--output", tmp_path / "in")
    command_line("export", "--checkpoint", tmp_path / "in", "--output", tmp_path / "out", "--dtype", "bfloat16")
    command_line("inspect", "--source", tmp_path / "out")
    said = capsys.readouterr().out
    for word in ("dit: ", "CogVideoXTransformer3DModel", "bfloat16"):
        assert word in said
    assert "t5 fits dit: width of text 24" in said
    assert "vae fits dit: latent channels 4" in said
    assert "prediction: v_prediction; the prompt is read by t5" in said


def test_the_command_exports_the_average_unless_told_otherwise_and_the_parts_that_are_named(run, tmp_path):
    run, params = run
    command = ("export", "--checkpoint", run.workdir, "--part", "aligner")
    command_line(*command, "--output", tmp_path / "average")
    command_line(*command, "--part", "t5", "--weights", "params", "--output", tmp_path / "last")
    for folder, added, names in (("average", 2, ["aligner"]), ("last", 1, ["t5", "aligner"])):
        back = Run.load(tmp_path / folder)
        assert [name for name in parts.KINDS if back.folder(name)] == names
        for path, x in back.params("aligner").items():
            np.testing.assert_array_equal(x, params[path] + np.float32(added))


@one_kind
def test_inspect_says_what_is_wrong_with_one_part_and_shows_the_others(sources, tmp_path):
    subprocess.run(["cp", "-r", sources[0], tmp_path / "copy"], check=True)
    file = next((tmp_path / "copy" / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    said = "\n".join(inspect([tmp_path / "copy"]))
    for words in ("cannot be used", "damaged", "text_encoder\n  t5, "):
        assert words in said


@one_kind
def test_parts_that_do_not_fit_are_refused_by_import_and_by_a_run(sources, tmp_path):
    qwen(tmp_path / "wide", width=96)
    import_checkpoint([tmp_path / "wide"], tmp_path / "in")
    config = tiny_config()
    run = Run.open(config, tmp_path / "run")
    parts.write("aligner", run.part_config("aligner"), run.params("aligner"), tmp_path / "aligner")
    with pytest.raises(InputError, match="mllm does not fit aligner: width of the MLLM's states 96 there and 48 here"):
        import_checkpoint([tmp_path / "wide", tmp_path / "aligner"], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere holds neither model_index.json nor config.json"),
        ("hunyuan", r"config.json describes 'HunyuanVideoTransformer3DModel'; accepted: AutoencoderKLWan, "),
        ("pickles", r"holds pytorch_model\.bin and no \.safetensors file; pickles can run any code"),
        ("shape", r"the weights do not fit the model:\n  token_embedding has shape \[9, 4\], the model \[8, 4\]"),
        ("nan", r"numbers that are not finite"),
    ],
)
def test_sources_that_cannot_be_imported_are_one_sentence(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    config = transformers.T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2)
    config.feed_forward_proj, config.is_gated_act, config.dense_act_fn = "gated-gelu", True, "gelu_new"
    model = transformers.T5EncoderModel(config)
    if source == "nan":
        torch.nn.init.constant_(model.shared.weight, torch.nan)
    for name in ("shape", "pickles", "nan"):
        model.save_pretrained(name)
    Path("hunyuan").mkdir()
    Path("hunyuan/config.json").write_text('{"_class_name": "HunyuanVideoTransformer3DModel"}')
    Path("pickles/model.safetensors").rename("pickles/pytorch_model.bin")
    changed = json.loads(Path("shape/config.json").read_text()) | {"vocab_size": 8}
    Path("shape/config.json").write_text(json.dumps(changed))
    transformers.T5EncoderModel(transformers.T5Config(**config.to_dict() | {"vocab_size": 9})).save_pretrained("nine")
    Path("nine/model.safetensors").replace("shape/model.safetensors")
    with pytest.raises(InputError, match=message):
        import_checkpoint([Path(source)], Path("out"))
    assert not list(tmp_path.glob("out*"))


@one_kind
def test_a_part_in_two_sources_and_an_output_that_is_there_are_refused(sources, tmp_path):
    with pytest.raises(InputError, match=r"there is a vae both in .*published/vae and in .*cinema_jax/assets/vae"):
        import_checkpoint([sources[0], parts.PACKAGED / "vae"], tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="full is there already; name a new folder"):
        import_checkpoint([sources[0]], tmp_path / "full")
    with pytest.raises(InputError, match="full is there already; name a new folder"):
        export_checkpoint(Run.load(sources[0]), tmp_path / "full")
    with pytest.raises(InputError, match=r"holds no aligner; it holds vae, t5, dit"):
        export_checkpoint(Run.load(sources[0]), tmp_path / "out", names=("aligner",))
    with pytest.raises(InputError, match=r"max_shard_size is '5 apples'"):
        export_checkpoint(Run.load(sources[0]), tmp_path / "out", max_shard_size="5 apples")


@one_kind
def test_a_run_starts_from_an_import_alone(imported, sources, tmp_path):
    """The released config with nothing named but the import: every part and tokenizer is the import's."""
    values = cogvideox_2b.get_config()
    values.init, values.data.path, values.condition.text_tokens = str(imported), str(tmp_path), 40
    run = Run.open(parse(values), tmp_path / "run")
    for name in ("vae", "t5", "mllm", "dit", "t5_tokenizer"):
        assert run.folder(name) == imported / "parts" / name
    assert run.folder("tokenizer") == imported / "parts" / "mllm"
    assert run.folder("aligner") is None
    direct = Run.load(sources[0]).params("dit")
    for path, x in run.params("dit").items():
        np.testing.assert_array_equal(x, direct[path])
    values.weights.mllm, values.init = str(sources[1]), ""
    assert Run(parse(values), tmp_path).folder("tokenizer") == sources[1], "the one beside the MLLM"


@one_kind
def test_a_part_without_its_tokenizer_is_refused(sources, tmp_path):
    values = cogvideox_2b.get_config()
    values.data.path = str(tmp_path)
    values.weights.t5 = str(sources[0] / "text_encoder")
    with pytest.raises(InputError, match=r"the t5 of .*text_encoder has no tokenizer beside it: name one as config\."):
        Run(parse(values), tmp_path).tokenizer("t5_tokenizer")
