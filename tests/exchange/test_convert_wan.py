"""Wan2.1 in and out through the importer and the exporter, and Phantom's weights in the place of its transformer."""

import filecmp
import json

import diffusers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from PIL import Image
from released import PROMPT, pipeline, wan_pipeline
from safetensors.torch import load_file, save_file

from cinema_jax import convert
from cinema_jax.data.example import Reference
from cinema_jax.data.images import read_image
from cinema_jax.diffusion import flow
from cinema_jax.errors import InputError
from cinema_jax.exchange.exports import export_checkpoint
from cinema_jax.exchange.imports import import_checkpoint
from cinema_jax.experiment import parts
from cinema_jax.experiment.pipelines import pipeline_config
from cinema_jax.experiment.run import Run
from cinema_jax.sampling.requests import Request
from cinema_jax.sampling.sampler import load_sampler, sampler_of
from cinema_jax.weights import rules, shards
from cinema_jax.weights.tensors import WeightError, open_tensors

CLASSES = {
    "transformer": diffusers.WanTransformer3DModel,
    "vae": diffusers.AutoencoderKLWan,
    "text_encoder": transformers.UMT5EncoderModel,
}
NEGATIVE, SEED, STEPS = "the lazy dog", 3, 4
HEIGHT, WIDTH = 32, 48


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Diffusers' pipeline; the folder in which it saved itself; and that with a transformer in bfloat16."""
    folder = tmp_path_factory.mktemp("made")
    theirs = wan_pipeline(folder)
    theirs.transformer.to(torch.bfloat16)
    theirs.save_pretrained(folder / "mixed")
    theirs.transformer = diffusers.WanTransformer3DModel.from_pretrained(folder / "pipeline" / "transformer")
    return theirs, folder / "pipeline", folder / "mixed"


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """What is imported and exported again."""
    folder = tmp_path_factory.mktemp("exported")
    import_checkpoint([made[2]], folder / "checkpoint")
    export_checkpoint(Run.load(folder / "checkpoint"), folder / "export", max_shard_size="30KB")
    return folder / "export"


def load(kind, folder):
    """By the original class, which must find every tensor and no other."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("part", CLASSES)
def test_every_part_comes_back_bit_for_bit(made, exported, part):
    one, other = (load(CLASSES[part], folder / part).state_dict() for folder in (made[2], exported))
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[name]) for name, x in one.items())
    kinds = {str(x.dtype) for x in open_tensors(exported / part).values()}
    assert kinds == {"bfloat16" if part == "transformer" else "float32"}


def test_the_pipeline_of_diffusers_opens_the_export_and_makes_the_same_frames(made, exported):
    def frames(folder):
        loaded = diffusers.WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        size = {"height": HEIGHT, "width": WIDTH, "num_frames": 5}
        return loaded(PROMPT, num_inference_steps=2, generator=generator, output_type="np", **size).frames

    np.testing.assert_array_equal(frames(made[2]), frames(exported))
    assert "WanPipeline.from_pretrained" in (exported / "README.md").read_text()


def test_an_export_imported_and_exported_again_is_the_same(exported, tmp_path):
    import_checkpoint([exported], tmp_path / "again")
    export_checkpoint(Run.load(tmp_path / "again"), tmp_path / "second", max_shard_size="30KB")
    for folder in ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"):
        files = sorted(file.name for file in (exported / folder).iterdir())
        assert files == sorted(file.name for file in (tmp_path / "second" / folder).iterdir())
        for name in files:
            assert filecmp.cmp(exported / folder / name, tmp_path / "second" / folder / name, shallow=False), name


def run(*words):
    options = convert._parser(["convert", *map(str, words)])
    convert.main(options)


def test_the_original_layout_is_one_file_that_comes_back_bit_for_bit(made, tmp_path, capsys):
    run("export", "--checkpoint", made[2], "--layout=original", "--output", tmp_path / "original")
    file = tmp_path / "original" / "diffusion_model.safetensors"
    assert str(file) in capsys.readouterr().out
    wanted = load(CLASSES["transformer"], made[2] / "transformer").state_dict()
    converted = convert_wan_transformer_to_diffusers(load_file(file))
    assert converted.keys() == wanted.keys()
    assert all(torch.equal(x.float(), wanted[name]) for name, x in converted.items())
    run("import", "--source", made[2], "--source", file, "--output", tmp_path / "checkpoint")
    run("export", "--checkpoint", tmp_path / "checkpoint", "--part=dit", "--output", tmp_path / "back")
    one, other = open_tensors(made[2] / "transformer"), open_tensors(tmp_path / "back" / "transformer")
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.dtype == other[name].dtype == ml_dtypes.bfloat16
        assert x.tobytes() == other[name].tobytes(), name


def test_weights_in_8_bits_stay_as_they_are_and_are_computed_with(made, tmp_path):
    tensors = load_file(made[2] / "transformer" / "diffusion_pytorch_model.safetensors")
    narrow = {name: x.to(torch.float8_e4m3fn) if ".to_" in name and x.ndim == 2 else x for name, x in tensors.items()}
    save_file(narrow, tmp_path / "narrow.safetensors")
    import_checkpoint([made[2], tmp_path / "narrow.safetensors"], tmp_path / "checkpoint")
    export_checkpoint(Run.load(tmp_path / "checkpoint"), tmp_path / "back", names=("dit",))
    back = load_file(tmp_path / "back" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {x.dtype for x in back.values()} == {torch.float8_e4m3fn, torch.bfloat16}
    assert all(torch.equal(back[name].float(), x.float()) and back[name].dtype == x.dtype for name, x in narrow.items())
    found = Run.load(tmp_path / "checkpoint").params("dit")["dit/blocks/self_attention/to_q/kernel"]
    expected = narrow["blocks.0.attn1.to_q.weight"].float().numpy().T
    np.testing.assert_array_equal(np.asarray(found[0], np.float32), expected)


@pytest.fixture(scope="module")
def phantom(made, tmp_path_factory):
    """Another transformer, as it is published: a file of original names; and both in one checkpoint."""
    folder = tmp_path_factory.mktemp("phantom")
    torch.manual_seed(7)
    theirs = diffusers.WanTransformer3DModel.from_config(made[0].transformer.config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.7 * parameter[0].numel() ** -0.5)
    theirs.save_pretrained(folder / "other" / "transformer")
    dit = Run.load(made[1]).part_config("dit")

    arrays = parts.read("dit", dit, folder / "other" / "transformer")
    arrays = {path.removeprefix("dit/"): x for path, x in arrays.items()}
    names = rules.publish(arrays, parts.kind_of("dit", dit).original(dit))
    shards.write_tensors(folder / "Phantom_wan_1.3b.safetensors", names)
    run("import", "--source", made[1], "--source", folder / "Phantom_wan_1.3b.safetensors", "--output", folder / "both")
    return theirs, folder / "both", folder / "Phantom_wan_1.3b.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """One wider and one higher than the video; a part of the second is transparent."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 48, 3), np.uint8)).save(folder / "a.png")
    clear = rng.integers(0, 255, (128, 64, 4), np.uint8)
    clear[..., 3], clear[:32, :, 3] = 255, 0
    Image.fromarray(clear).save(folder / "b.png")
    return [folder / "a.png", folder / "b.png"]


def boxes(pictures):
    """The pictures on white, as large as a video of 32 x 48 pixels."""
    result = np.full((2, HEIGHT, WIDTH, 3), 255, np.uint8)
    first = Image.open(pictures[0])
    result[0, 8:24] = np.asarray(first)
    second = Image.open(pictures[1])
    white = Image.new("RGB", second.size, (255, 255, 255))
    white.paste(second, mask=second.getchannel("A"))
    result[1, :, 16:32] = np.asarray(white.resize((16, 32), Image.Resampling.LANCZOS, reducing_gap=3.0))
    return result


def by_diffusers(pipeline, transformer, pictures):
    """Phantom's sampling: references behind the clip, three branches, of which one has zeros in their place."""
    vae = pipeline.vae
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
    pixels = torch.tensor(boxes(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    references = (vae.encode(pixels[:, :, None]).latent_dist.mode() - mean) / std
    references = references.permute(2, 1, 0, 3, 4)
    text, negative = pipeline.encode_prompt(PROMPT, NEGATIVE, max_sequence_length=512)
    scheduler = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config, flow_shift=5.0)
    scheduler.set_timesteps(STEPS)
    z = noise()

    def velocity(z, timestep, text, references):
        clip = torch.cat([z, references], dim=2)
        return transformer(clip, timestep.expand(1), text, return_dict=False)[0][:, :, : z.shape[2]]

    for timestep in scheduler.timesteps:
        nothing = velocity(z, timestep, negative, torch.zeros_like(references))
        image = velocity(z, timestep, negative, references)
        both = velocity(z, timestep, text, references)
        v = nothing + 5.0 * (image - nothing) + 7.5 * (both - image)
        z = scheduler.step(v, timestep, z, return_dict=False)[0]
    return z.permute(0, 2, 3, 4, 1).numpy()


def noise():
    keys = jnp.stack([jax.random.key(SEED, impl="threefry2x32")])
    return torch.tensor(np.asarray(flow.sample_noise(keys, (3, 4, 6, 4)))).permute(0, 4, 1, 2, 3)


def request(pictures):
    read = [read_image(path) for path in pictures]
    references = tuple(Reference(picture.image, picture.mask, str(i)) for i, picture in enumerate(read))
    return Request(PROMPT, references, SEED, NEGATIVE)


def test_phantom_samples_as_a_loop_of_diffusers(made, phantom, pictures):
    with torch.no_grad():
        expected = by_diffusers(made[0], phantom[0], pictures)
    _, sampler = load_sampler(phantom[1])
    settings = sampler.settings(steps=STEPS, frames=9, height=HEIGHT, width=WIDTH)
    assert (settings.shift, settings.guidance_reference, settings.guidance_text) == (5.0, 5.0, 7.5)
    latents = np.asarray(sampler.latents([request(pictures)], settings))
    assert np.abs(latents - expected).max() < 1e-3 * np.abs(expected).max()
    # Twice the references in another order are another video.
    swapped = np.asarray(sampler.latents([request(pictures[::-1])], settings))
    assert np.abs(swapped - expected).max() > 1e-2 * np.abs(expected).max()


def test_a_checkpoint_remembers_how_its_references_enter(made, phantom, tmp_path, capsys):
    export_checkpoint(Run.load(phantom[1]), tmp_path / "export")
    config = pipeline_config(tmp_path / "export")
    assert (config.condition.empty_references, config.data.references_like_video) == ("zeros", True)
    assert config == Run.load(phantom[1]).config
    diffusers.WanPipeline.from_pretrained(tmp_path / "export")
    run("import", "--source", made[1], "--source", phantom[2], "--preset=none", "--output", tmp_path / "plain")
    assert not Run.load(tmp_path / "plain").config.condition.entities
    assert "phantom" not in capsys.readouterr().out


def test_five_references_are_too_many(phantom, pictures):
    sampler = sampler_of(Run.load(phantom[1]))
    asked = request([*pictures, *pictures, pictures[0]])
    with pytest.raises(InputError, match="5 references were given; at most 4 are accepted"):
        sampler.latents([asked], sampler.settings(frames=1, height=HEIGHT, width=WIDTH))


def test_files_that_are_no_such_transformer_are_refused_in_one_sentence(made, tmp_path):
    def refused(error, message, *sources, **options):
        with pytest.raises(error, match=message):
            import_checkpoint([*sources], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    (tmp_path / "a.pth").write_bytes(b"pickle")
    (tmp_path / "a.gguf").write_bytes(b"gguf")
    save_file({"blocks.0.self_attn.q.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    save_file({"vace_patch_embedding.bias": torch.zeros(2)}, tmp_path / "vace.safetensors")
    refused(InputError, r"a\.pth is a pickle.*weights_only=True", made[1], tmp_path / "a.pth")
    refused(InputError, "neither a folder nor a .safetensors file", made[1], tmp_path / "a.gguf")
    refused(WeightError, "this is a LoRA file", made[1], tmp_path / "lora.safetensors")
    refused(WeightError, "this is a VACE checkpoint", made[1], tmp_path / "vace.safetensors")
    refused(InputError, "is a file of tensors alone", tmp_path / "lora.safetensors")
    refused(InputError, "name one such file", made[1], tmp_path / "lora.safetensors", tmp_path / "vace.safetensors")
    file = made[1] / "transformer" / "config.json"
    wider = json.loads(file.read_text()) | {"in_channels": 36}
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text(json.dumps(wider))
    refused(InputError, "does not fit dit: latent channels 4 there and 36 here", made[1] / "vae", tmp_path / "wide")


def test_weights_of_another_wan_are_refused_in_one_sentence(made, tmp_path):
    """As 14B's or I2V's beside the folder of 1.3B T2V; files of other networks; and Wan2.2's two experts."""
    config = dict(made[0].transformer.config)

    def refused(error, message, file):
        with pytest.raises(error, match=message) as found:
            import_checkpoint([made[1], file], tmp_path / "out")
        assert "\n" not in str(found.value)
        assert not (tmp_path / "out").exists()

    def saved(name, **changes):
        torch.manual_seed(0)
        other = diffusers.WanTransformer3DModel.from_config(config | changes)
        save_file(other.state_dict(), tmp_path / name)
        return tmp_path / name

    larger = saved("14b.safetensors", num_layers=3, num_attention_heads=4, ffn_dim=40)
    refused(WeightError, r"num_layers 3, not 2; width 48, not 24; ffn_dim 40, not 32\)", larger)
    images = saved("i2v.safetensors", in_channels=9, image_dim=10, added_kv_proj_dim=24)
    refused(
        WeightError, r"\(image_embed_dim 10, not 0; in_channels 9, not 4\): they want the folder of their own", images
    )
    save_file({"double_blocks.0.img_mlp.fc1.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    refused(WeightError, r"no patch_embedding.weight is among them \(1 tensors\)", tmp_path / "other.safetensors")
    for name, what in (
        ("wan2.2_t2v_high_noise_14B.safetensors", "one of the two transformers of a Wan2.2"),
        ("diffusion_pytorch_model-00001-of-00006.safetensors", "one of several files of a network"),
    ):
        save_file({"a": torch.zeros(2)}, tmp_path / name)
        refused(InputError, what, tmp_path / name)
    for name in ("high_noise_model", "low_noise_model"):
        (tmp_path / "experts" / name).mkdir(parents=True)
    refused(InputError, "experts holds the two transformers of a Wan2.2", tmp_path / "experts")


def test_the_preset_is_for_wan(tmp_path):
    pipeline(tmp_path, False, "ddim")
    with pytest.raises(InputError, match="--preset=phantom is for Wan's transformer"):
        import_checkpoint([tmp_path / "pipeline"], tmp_path / "out", "phantom")
    with pytest.raises(InputError, match="CogVideoXTransformer3DModel, which has no original layout"):
        run("export", "--checkpoint", tmp_path / "pipeline", "--layout=original", "--output", tmp_path / "out")
