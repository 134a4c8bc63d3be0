"""The stage `finetune`: AlignerNet and video transformer learn from references and prompts together."""

from cinema_jax.cinema import Cinema, Params
from cinema_jax.config import Config
from cinema_jax.data.pipeline import Examples
from cinema_jax.experiment.run import Run
from cinema_jax.training import identity
from cinema_jax.training.metrics import MetricsWriter
from cinema_jax.training.reports import show_samples
from cinema_jax.training.samples import trained_sampler
from cinema_jax.training.stages.base import Stage
from cinema_jax.training.stages.flow import flow_evaluation, flow_loss


class _Finetune(Stage):
    """T5 takes the AlignerNet's place where the config has it read the prompts."""

    def needed(self, config: Config) -> tuple[str, ...]:
        """T5 and no AlignerNet, where that reads the prompts."""
        if config.condition.conditioner == "mllm":
            return self.parts
        # The MLLM judges drawn subjects, though it does not read.
        unused = ("aligner",) if config.data.source == "critters" and not config.data.subjects else ("aligner", "mllm")
        return (*(part for part in self.parts if part not in unused), "t5")

    def taught(self, config: Config) -> tuple[str, ...]:
        """T5 and not the AlignerNet, where that reads no prompt."""
        reads_t5 = config.condition.conditioner == "t5"
        return tuple("t5" if reads_t5 and part == "aligner" else part for part in self.teaches)

    def read_by_t5(self, config: Config) -> tuple[str, ...]:
        """Prompts, where T5 reads them."""
        return ("prompt",) if config.condition.conditioner == "t5" else ()

    def read_by_mllm(self, config: Config) -> tuple[str, ...]:
        """Prompts, and captions if the config has them in their place."""
        return (*self.mllm_texts, *(["caption with its references"] if config.finetune.captions else []))

    def afresh(self, config: Config) -> frozenset[str]:
        """The AlignerNet, in the ablation without `align`."""
        return frozenset({"aligner"} if config.condition.aligner_init == "random" else ())


def samples_and_identities(run: Run, cinema: Cinema, params: Params, metrics: MetricsWriter) -> dict[str, float]:
    """Generated videos of held-out subjects, and how often these are recognised."""
    sampler = trained_sampler(run, cinema.part_configs, params)
    show_samples(run, sampler, metrics)
    return identity.measure(run, sampler)


FINETUNE = _Finetune(
    "finetune",
    parts=("vae", "mllm", "aligner", "dit"),
    teaches=("aligner", "dit"),
    loss=lambda cinema: flow_loss(cinema, cinema.conditions, "finetune"),
    evaluate=lambda cinema: flow_evaluation(cinema, cinema.conditions),
    example=Examples.finetune,
    told=Examples.finetune_told,
    latents=True,
    mllm_texts=("prompt with its references",),
    report=samples_and_identities,
)
