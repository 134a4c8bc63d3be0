"""What the fields of a config must agree on."""

from cinema_jax.config.bounds import FRAMES, PIXELS, check_bounds
from cinema_jax.config.sections import CONDITIONED, ON_CLIPS, STAGES, Config, ImageFirstStageConfig
from cinema_jax.diffusion.config import DISCRETE_SOLVERS
from cinema_jax.errors import InputError
from cinema_jax.inputs import typed


def _frames(name: str, value: int) -> None:
    if value < 1 or value % 4 != 1:
        nearest = max(1, round((value - 1) / 4) * 4 + 1)
        raise InputError(f"{name} is {value}; it must be 4k+1, for example {nearest}")
    FRAMES.check(name, value)


def _pixels(name: str, value: int) -> None:
    if value < 16 or value % 16:
        nearest = max(16, round(value / 16) * 16)
        raise InputError(f"{name} is {value}; it must be a multiple of 16, for example {nearest}")
    PIXELS.check(name, value)


def dropout(config: Config, stage: str) -> tuple[float, ...]:
    """How often a stage drops text alone, references alone, and both."""
    condition = config.condition
    own = config.of_stage(stage).dropout if stage else ()
    return own or (condition.text_dropout, condition.reference_dropout, condition.joint_dropout)


def _check_dropout(config: Config, stage: str) -> None:
    """That of a stage; of "", what `config.condition` says for all."""
    name = f"config.{stage}.dropout" if stage else "config.condition.text_dropout, reference_dropout and joint_dropout"
    shares = dropout(config, stage)
    if len(shares) != 3 or not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise InputError(f"{name}: {shares} must be three shares (text, references, both), together below 1")
    if stage and stage not in CONDITIONED and config.of_stage(stage).dropout:
        raise InputError(f"{name} is {shares}, but this stage drops nothing: leave it empty")


def _check_curriculum(config: Config, stage: str) -> None:
    """Whether the phases of a stage follow each other and leave steps for the main one."""
    section, before = config.of_stage(stage), 0
    if section.curriculum and stage not in ON_CLIPS:
        raise InputError(
            f"config.{stage}.curriculum is {section.curriculum}; only {' and '.join(ON_CLIPS)} may have one"
        )
    for i, (frames, end, batch_size, rate) in enumerate(section.curriculum):
        name = f"config.{stage}.curriculum[{i}]"
        _frames(f"{name}[0] (frames)", frames)
        if stage in config.stages and not before < end < section.steps:
            raise InputError(
                f"{name}[1] (last step) is {end}; it must be above {before} and below config.{stage}.steps, "
                f"{section.steps}: give the phases other ends, or none with config.{stage}.curriculum=()"
            )
        if batch_size < 1:
            raise InputError(f"{name}[2] (batch_size) is {batch_size}; it must be at least 1")
        if not 0 < rate < float("inf"):
            raise InputError(f"{name}[3] (learning_rate) is {rate}; it must be above 0 and finite")
        before = end


def _check_kept(config: Config, stage: str) -> None:
    section = config.of_stage(stage)
    if section.keep_every < 0 or section.keep_every % section.checkpoint_every:
        raise InputError(
            f"config.{stage}.keep_every is {section.keep_every}; it must be 0 or a multiple of "
            f"config.{stage}.checkpoint_every, {section.checkpoint_every}"
        )


def _validate(config: Config) -> None:
    check_bounds(config, STAGES)
    for name in ("vae", "t5", "mllm", "aligner", "dit"):
        typed.check_sizes(getattr(config, f"{name}_model"), f"config.{name}_model.")
    for i, stage in enumerate(config.stages):
        if stage not in STAGES:
            raise InputError(f"config.stages holds {stage!r}; accepted: {', '.join(STAGES)}")
        if stage in config.stages[:i]:
            raise InputError(f"config.stages holds {stage!r} twice")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"config.seed is {config.seed}; it must be from 0 to {2**32 - 1}")
    data = config.data
    _frames("config.data.frames", data.frames)
    for name in ("height", "width", "reference_height", "reference_width"):
        _pixels(f"config.data.{name}", getattr(data, name))
    for i, (frames, height, width, references) in enumerate(data.buckets):
        name = f"config.data.buckets[{i}]"
        _frames(f"{name}[0] (frames)", frames)
        _pixels(f"{name}[1] (height)", height)
        _pixels(f"{name}[2] (width)", width)
        if not 1 <= references <= data.max_references:
            accepted = f"from 1 to config.data.max_references, {data.max_references}"
            raise InputError(f"{name}[3] (references) is {references}; it must be {accepted}")
        if data.buckets[i] in data.buckets[:i]:
            raise InputError(f"{name} is {data.buckets[i]}, as one before it; each bucket is named once")
    if data.references_like_video and data.crop_references:
        raise InputError(
            "config.data.crop_references is True; with config.data.references_like_video whole pictures are shown"
        )
    if config.condition.reference_channels == "masked" and (not data.references_like_video or data.enlarge_references):
        raise InputError(
            "config.condition.reference_channels is 'masked', for which a reference stands in the video's size: it "
            "needs config.data.references_like_video=True and config.data.enlarge_references=False"
        )
    if not all(0 < scale <= 1 for scale in config.condition.mllm_scales):
        raise InputError(f"config.condition.mllm_scales is {config.condition.mllm_scales}; both must be in (0, 1]")
    if data.source in ("folder", "records") and not data.path:
        held = "manifest.jsonl" if data.source == "folder" else "what cinema_jax.prepare wrote"
        raise InputError(
            f"config.data.path is empty; with data.source={data.source} it must name the folder that holds {held}"
        )
    if data.source == "records" and "vae" in config.stages:
        raise InputError(
            "config.stages holds 'vae', which trains on pixels, and data.source=records holds latents: use folder"
        )
    if config.flow.solver in DISCRETE_SOLVERS and config.flow.prediction != "v_prediction":
        raise InputError(
            f"config.flow.solver is {config.flow.solver!r}, which needs config.flow.prediction=v_prediction"
        )
    if config.flow.spacing == "timesteps" and config.flow.prediction != "velocity":
        raise InputError(
            "config.flow.spacing is 'timesteps', which is that of a flow: it needs config.flow.prediction=velocity"
        )
    for name in ("times", "spacing"):
        if getattr(config.flow, name) == "schedule" and config.flow.prediction != "v_prediction":
            raise InputError(
                f"config.flow.{name} is 'schedule', which needs a noise schedule: config.flow.prediction=v_prediction"
            )
    for stage in ("", *STAGES):
        _check_dropout(config, stage)
    for stage in STAGES:
        _check_curriculum(config, stage)
    if not 0 < config.t5.corruption < 1:
        raise InputError(f"config.t5.corruption is {config.t5.corruption}; it must lie between 0 and 1")
    pretrain = config.pretrain
    for name in ("references", "prompts", "plots"):
        if not 0 <= getattr(pretrain, name) <= 1:
            raise InputError(f"config.pretrain.{name} is {getattr(pretrain, name)}; it must lie in [0, 1]")
        if getattr(pretrain, name) and not pretrain.references:
            raise InputError(
                f"config.pretrain.{name} is {getattr(pretrain, name)}, which needs references to be shown: "
                "config.pretrain.references is 0"
            )
    if not 0 <= config.align.caption_share <= 1:
        raise InputError(f"config.align.caption_share is {config.align.caption_share}; it must lie in [0, 1]")
    if config.align.caption_share and not data.captions:
        raise InputError(
            f"config.align.caption_share is {config.align.caption_share:g}, but config.data.captions is empty: name a "
            "text file with one caption a line"
        )
    if pretrain.prompts + pretrain.plots > 1:
        raise InputError(
            f"config.pretrain.prompts and plots are {pretrain.prompts} and {pretrain.plots}; together they must be at "
            "most 1"
        )
    if not 1 <= config.flow.subject_weight < float("inf"):
        raise InputError(f"config.flow.subject_weight is {config.flow.subject_weight}; it must be at least 1")
    for stage in config.stages:
        _check_kept(config, stage)
        section = config.of_stage(stage)
        if isinstance(section, ImageFirstStageConfig) and not 0 <= section.image_steps <= section.steps:
            raise InputError(
                f"config.{stage}.image_steps is {section.image_steps}; it must be from 0 to config.{stage}.steps, "
                f"{section.steps}"
            )
