"""The sections of a config: frozen dataclasses, each field documented once."""

import dataclasses
from typing import Literal

from cinema_jax.config.augment import AugmentConfig
from cinema_jax.config.condition import ConditionConfig
from cinema_jax.config.fields import option, section
from cinema_jax.config.optimizer import OptimizerConfig
from cinema_jax.diffusion.config import Prediction, Solver, Spacing, Times
from cinema_jax.diffusion.schedule import NoiseSchedule
from cinema_jax.models.aligner.config import AlignerConfig
from cinema_jax.models.cogvideox.config import CogVideoXConfig
from cinema_jax.models.cogvideox.vae_config import CogVideoXVAEConfig
from cinema_jax.models.qwen_vl.config import Qwen2VLConfig
from cinema_jax.models.t5.config import T5Config
from cinema_jax.models.wan.config import WanVAEConfig
from cinema_jax.models.wan.transformer_config import WanConfig

STAGES = ("vae", "mllm", "t5", "pretrain", "align", "finetune")


# Those that may begin with shorter clips.
ON_CLIPS = ("pretrain", "finetune")


# Those whose examples are texts and references of videos: they drop some, and can be planned without data.
CONDITIONED = ("pretrain", "align", "finetune")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data."""

    source: Literal["critters", "folder", "records"] = option(
        "critters", "The built-in drawn dataset, a folder of your own videos, or records of them by cinema_jax.prepare."
    )
    path: str = option("", "With source=folder or records: the folder that holds manifest.jsonl or the records.")
    captions: str = option(
        "",
        "A text file with one caption a line, of videos that need not be there: what align.caption_share draws from. "
        "UTF-8, on a disk that all hosts see.",
    )
    follow_links: bool = option(
        False, "With source=folder: whether its files may be symbolic links out of it, as in the cache of a hub."
    )
    subjects: str = option("", "With source=critters: a folder of cut-out PNGs to use as subjects (file stem = noun).")
    shares: tuple[float, ...] = option(
        (0.3, 0.45, 0.25), "With source=critters: shares of scenes with one, two and three subjects."
    )
    frames: int = option(9, "Pixel frames of a clip: 4k+1.")
    height: int = option(64, "Pixels; a multiple of 16.")
    width: int = option(64, "Pixels; a multiple of 16.")
    fps: float = option(8.0, "Frames a second; videos are resampled to it by their time stamps.")
    reference_height: int = option(64, "Pixels of a reference as the VAE sees it.")
    reference_width: int = option(64, "Pixels of a reference as the VAE sees it.")
    crop_references: bool = option(
        False,
        "Whether a reference is first cropped to its subject (its mask, or its box in the manifest) with a margin of "
        "5 %, for VAE and multimodal LLM alike, and enlarged to fill its place, at most 3 times. Off: the multimodal "
        "LLM sees whole pictures, and nothing is enlarged, as the packaged demo was trained.",
    )
    references_like_video: bool = option(
        False,
        "Whether a reference's place is as large as the video, and its whole picture enlarged as far as it fits, as "
        "Phantom was trained. Then reference_height, reference_width and crop_references say nothing.",
    )
    enlarge_references: bool = option(
        True,
        "With references_like_video: whether small pictures are enlarged; off: they keep their size, as BindWeave was "
        "trained.",
    )
    background: Literal["white", "black"] = option(
        "white", "What readers of a reference see around its picture, and where that is transparent."
    )
    max_references: int = option(3, "Largest number of references of an example.")
    buckets: tuple[tuple[int, int, int, int], ...] = option(
        (),
        "Several sizes in one run, each (frames, height, width, references): a clip trains in the bucket of the "
        "nearest aspect ratio for which it has enough frames, and of those the one of fewest references that has room "
        "for its subjects: absent references cost nothing. Empty: one size, frames, height, width, max_references.",
    )
    train_videos: int = option(0, "How many training videos are encoded and used; 0: all of the source.")
    validation_videos: int = option(64, "How many held-out videos the evaluation uses.")
    validation_fraction: float = option(0.1, "The share of a user's videos (or groups) held out, by their hash.")
    keep_background: float = option(
        0.2, "How often training shows a reference with its background, where it has one, and not cut out."
    )
    other_view: float = option(
        0.0,
        "How often a subject that has both is shown by a view from elsewhere, and otherwise by one of the clip itself; "
        "0: by any of its views, all alike.",
    )
    augment: AugmentConfig = section(AugmentConfig, "How references are augmented, anew each epoch.")
    augment_same_clip: AugmentConfig | None = option(
        None,
        "The same of references that are cut out of the clip itself, in place of `augment`; None: as all others.",
    )
    workers: int = option(0, "Processes that prepare examples, where decoding holds Python's lock; 0: only threads.")
    threads: int = option(2, "Threads that prepare batches.")

    @property
    def reference_size(self) -> tuple[int, int]:
        """Height and width of a reference as the VAE sees it, in pixels."""
        return (
            (self.height, self.width) if self.references_like_video else (self.reference_height, self.reference_width)
        )


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Where a part's initial weights come from: "packaged" (the small ones that ship with the project), a folder in the
    Hugging Face layout (config.json + *.safetensors) or a repository of the hub (hf://owner/name), or "" for what
    `init` holds, or else random numbers at the size of its section. A tokenizer that is not named is looked for in its
    part's folder."""

    vae: str = option("packaged", "The video VAE.")
    t5: str = option("packaged", "The T5 encoder.")
    mllm: str = option("packaged", "The multimodal LLM.")
    clip: str = option("", "The CLIP vision tower, for transformers that read its tokens.")
    aligner: str = option("", "The AlignerNet.")
    dit: str = option("", "The video transformer.")
    tokenizer: str = option("packaged", "The MLLM's tokenizer.")
    t5_tokenizer: str = option("packaged", "The T5's tokenizer.")


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """Flow matching and sampling."""

    times: Times = option(
        "logit_normal",
        "How training draws times: logit_normal; uniform; or schedule, for v_prediction: uniform over the timesteps of "
        "the noise schedule, each with the weight that it had in the transformer's pretraining.",
    )
    stratified: bool = option(
        False, "Spread the times of each batch evenly over their distribution; otherwise each is drawn by itself."
    )
    time_mean: float = option(0.0, "Mean of the logit-normal training times.")
    time_std: float = option(1.0, "Standard deviation of the logit-normal training times.")
    shift: float = option(
        1.0,
        "Resolution shift of training and sampling times that are not those of the schedule: "
        "t' = s t / (1 + (s - 1) t).",
    )
    prediction: Prediction = option(
        "velocity", "What the transformer predicts: the flow's velocity, or v on the noise schedule (CogVideoX)."
    )
    solver: Solver = option(
        "unipc", "unipc (second order) and euler follow the flow; ddim and dpm, for v_prediction, are CogVideoX's."
    )
    spacing: Spacing = option(
        "uniform",
        "Of the sampler's times, before the shift; cosine is denser at both ends. timesteps: as Wan is sampled, with "
        "whole timesteps for the network. schedule, for v_prediction: evenly over the timesteps of the noise schedule, "
        "without the shift.",
    )
    sample_steps: int = option(20, "Sampler steps, each one network evaluation.")
    subject_weight: float = option(
        1.0,
        "Weight of the training error where the video shows a subject, at least 1. Above 1 only with "
        "data.source=critters: other sources do not say where subjects are, and are refused.",
    )
    guidance_text: float = option(3.0, "Guidance scale of the prompt; 1 is no guidance.")
    guidance_reference: float = option(2.0, "Guidance scale of the references; 1 is no guidance.")
    tiled_decoding: bool = option(False, "Decode videos in overlapping tiles: less memory, slightly different videos.")
    dynamic_guidance: bool = option(False, "With ddim and dpm: increase scales above 1 during sampling.")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of training."""

    trainable: tuple[str, ...] = option(
        (), "Regular expressions of the parameters that are trained; all others are frozen."
    )
    steps: int = option(1000, "Optimizer steps.")
    batch_size: int = option(32, "Examples a step, over all devices.")
    microbatches: int = option(
        1, "Parts of a batch that are run one after the other: to save memory, or to stay in the caches of a CPU."
    )
    optimizer: OptimizerConfig = section(OptimizerConfig, "AdamW and its schedule.")
    ema_decay: float = option(0.999, "Decay of the averaged weights, which evaluation, later stages and sampling use.")
    log_every: int = option(10, "Steps between metric records.")
    eval_every: int = option(0, "Steps between held-out evaluations; 0: only at the end.")
    sample_every: int = option(
        0,
        "Steps between contact sheets of held-out examples; 0: only at the end of `finetune`. For stages that have all "
        "parts that generate a video: `align` and `finetune`.",
    )
    checkpoint_every: int = option(100, "Steps between checkpoints.")
    keep: int = option(2, "Number of checkpoints that are kept.")
    keep_every: int = option(0, "Checkpoints whose step is a multiple of this are kept as well, all of them; 0: none.")
    curriculum: tuple[tuple[int, int, int, float], ...] = option(
        (),
        "Phases before the main one, each (frames, last step, batch_size, learning_rate): until that step clips have "
        "at most so many frames, 1 being single images. After the last of them the stage goes on to `steps` with its "
        "own batch, rate and clips. Where there are any, a picture file is a clip of one frame. For `pretrain` and "
        "`finetune`.",
    )
    dropout: tuple[float, ...] = option(
        (),
        "The shares of text_dropout, reference_dropout and joint_dropout in this stage; empty: those of "
        "`config.condition`. For `pretrain`, `align` and `finetune`.",
    )

    @property
    def earlier_rates(self) -> list[tuple[int, float]]:
        """Of each phase before the main one, how many steps are done at its end, and its learning rate."""
        return [(end, rate) for _, end, _, rate in self.curriculum]


@dataclasses.dataclass(frozen=True)
class ImageFirstStageConfig(StageConfig):
    """A stage that begins with single images (frames for the VAE, one reference for the MLLM), which is cheaper."""

    image_steps: int = option(0, "Number of first steps that train on single images.")
    image_batch_size: int = option(32, "Single images a step in those.")


@dataclasses.dataclass(frozen=True)
class VAEStageConfig(ImageFirstStageConfig):
    """The stage that trains the VAE."""

    kl_weight: float = option(1e-6, "Weight of the KL term.")
    importance: float = option(
        0.0,
        "How strongly the finished VAE's latent channels are scaled by their effect on the picture: 0 gives all the "
        "same variance, 1 makes their squared error that of the picture. Above 0 they are also decorrelated.",
    )


@dataclasses.dataclass(frozen=True)
class T5StageConfig(StageConfig):
    """The stage that trains T5 alone, on the words of the data."""

    corruption: float = option(
        0.3, "Share of words that are replaced by random ones; T5 learns to predict the original words."
    )


@dataclasses.dataclass(frozen=True)
class PretrainStageConfig(StageConfig):
    """The stage that trains the video transformer on captions."""

    references: float = option(
        0.0,
        "How often an example has its references, next to the caption; 0: text to video only, without room for any.",
    )
    prompts: float = option(
        0.0,
        "How often such an example has its prompt in place of the caption: what the prompt leaves out can only be seen "
        "in the references.",
    )
    plots: float = option(
        0.0,
        "How often it has its plot in place of the caption: a caption without what the references show, which names "
        "the subjects by their order.",
    )


@dataclasses.dataclass(frozen=True)
class AlignStageConfig(StageConfig):
    """The stage that trains the AlignerNet."""

    mse_weight: float = option(1.0, "Weight of the mean squared error.")
    cosine_weight: float = option(1.0, "Weight of 1 - cosine similarity.")
    balanced: bool = option(
        False,
        "Whether the tokens of each caption have half of its loss, and the padding after them the other half; off: all "
        "positions count alike, which are mostly padding.",
    )
    caption_share: float = option(
        0.0, "How often an example is a line of data.captions, without references, in place of one of the videos."
    )


@dataclasses.dataclass(frozen=True)
class FinetuneStageConfig(StageConfig):
    """The stage that trains the AlignerNet and the transformer together."""

    captions: float = option(
        0.0,
        "How often an example has its caption in place of its prompt: vague prompts alone would let the transformer "
        "forget detailed ones.",
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The device mesh; -1 fills one axis with the devices left over."""

    data: int = option(-1, "Copies of the state, each for its share of the batch.")
    fsdp: int = option(1, "Devices that share batch and state; 0: at most 16, a power of two that divides the rest.")
    context: int = option(1, "Devices that share each sequence, and the state.")
    tensor: int = option(1, "Devices that share heads and features.")
    slice: int = option(0, "Groups of devices that are connected by a slower network; 0: the number of slices.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    precision: Literal["float32", "bfloat16", "float64"] = option(
        "float32",
        "Type in which networks compute and frozen parts are held. Trained weights, average and moments are float32.",
    )
    seed: int = option(0, "Decides initial weights, data order, noise and augmentation.")
    stages: tuple[str, ...] = option(CONDITIONED, f"Stages to run, in order, of {STAGES}.")
    init: str = option(
        "",
        "Where parts that `weights` does not name start from: a folder in the layout of diffusers, an import, a "
        'finished run, or "packaged", the demo that ships with the project.',
    )
    data: DataConfig = section(DataConfig, "The training data.")
    weights: WeightsConfig = section(WeightsConfig, "Where initial weights come from.")
    condition: ConditionConfig = section(ConditionConfig, "How prompt and references reach the transformer.")
    flow: FlowConfig = section(FlowConfig, "Flow matching and sampling.")
    schedule: NoiseSchedule = section(NoiseSchedule, "The noise schedule of a transformer that predicts v.")
    vae_model: WanVAEConfig | CogVideoXVAEConfig = section(WanVAEConfig, "Size of a VAE trained from scratch.")
    t5_model: T5Config = section(T5Config, "Size of a T5 encoder trained from scratch.")
    mllm_model: Qwen2VLConfig = section(Qwen2VLConfig, "Size of an MLLM trained from scratch.")
    aligner_model: AlignerConfig = section(
        lambda: AlignerConfig(input_dim=1536, output_dim=4096),
        "Size of the AlignerNet; its outer widths follow MLLM and T5.",
    )
    dit_model: CogVideoXConfig | WanConfig = section(CogVideoXConfig, "Size of a transformer trained from scratch.")
    vae: VAEStageConfig = section(lambda: VAEStageConfig(trainable=("vae/.*",)), "Stage: the video VAE.")
    mllm: ImageFirstStageConfig = section(
        lambda: ImageFirstStageConfig(trainable=("mllm/.*",)), "Stage: the MLLM learns to describe."
    )
    t5: T5StageConfig = section(lambda: T5StageConfig(trainable=("t5/.*",)), "Stage: T5 learns the language.")
    pretrain: PretrainStageConfig = section(
        lambda: PretrainStageConfig(trainable=("dit/.*",)), "Stage: captions to video."
    )
    align: AlignStageConfig = section(lambda: AlignStageConfig(trainable=("aligner/.*",)), "Stage: MLLM to T5 space.")
    finetune: FinetuneStageConfig = section(
        lambda: FinetuneStageConfig(trainable=("aligner/.*", "dit/.*")), "Stage: references and prompt to video."
    )
    mesh: MeshConfig = section(MeshConfig, "The device mesh.")
    evaluate_identities: int = option(64, "Number of held-out videos in the measurement at the end of training.")

    def of_stage(self, name: str) -> StageConfig:
        """The section of a stage."""
        return getattr(self, name)
