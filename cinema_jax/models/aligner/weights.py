"""The names under which an AlignerNet is stored."""

from cinema_jax.weights import Rule, linear, norm

# There is no published module: files hold our own names, in PyTorch's layout like those of all other parts.
TABLE: tuple[Rule, ...] = (
    Rule("latents", "latents"),
    *linear("input_projection", "input_projection"),
    *(r for x in ("latents", "states", "mlp") for r in norm(f"layers.{{layer}}.{x}_norm", f"layers/{x}_norm")),
    *(r for x in ("q", "k", "v", "o", "up", "down") for r in linear(f"layers.{{layer}}.{x}", f"layers/{x}")),
    *linear("output_projection", "output_projection"),
    *norm("output_norm", "output_norm"),
)
