"""How fast the multimodal LLM answers beside transformers, on the CPU, in fp32, both with a cache of keys and values:

    pip install -e ".[test]" && python benchmarks/answers.py

The Qwen2-VL of `speed.py` (101.8 M, two images among 100 words) says the same `--new` tokens, greedily, in turn in one
process. A token's time is that of all of them without that of one, over the others; times are medians. Prints a table
in Markdown, and before it how busy the machine is: other work slows the two unequally.
"""

import os
import statistics

import jax
import numpy as np
import torch
from absl import app, flags
from flax import nnx
from speed import PAUSE, THREADS, small_qwen
from timing import seconds

from cinema_jax.commands import command
from cinema_jax.models.qwen_vl.decoding import decode

BATCHES = flags.DEFINE_list("batches", ["1", "4"], "Prompts answered at once.")
NEW = flags.DEFINE_integer("new", 64, "Tokens of an answer.", lower_bound=2)


def row(batch: int) -> str:
    """A line of the table: `batch` prompts at once."""
    original, graph, state, inputs, given = small_qwen()
    model = nnx.merge(graph, state)
    inputs = jax.tree.map(lambda x: np.repeat(x, batch, axis=0), inputs)
    given = {name: x.repeat(batch, *[1] * (x.ndim - 1)) for name, x in given.items()}
    length, every = inputs.tokens.shape[1], NEW.value

    def ours(new):
        return decode(model, inputs, stop=[-1], max_new_tokens=new, room=every).tokens[:, :new]

    def theirs(new):
        # Its config has the stop tokens of the released models, which this vocabulary has not.
        out = original.generate(**given, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        return out[:, length:].numpy()

    assert np.array_equal(ours(every), theirs(every)), "the answers differ"
    ours(1), theirs(1)
    times: dict[str, list[tuple[float, float]]] = {"theirs": [], "ours": []}
    for _ in range(flags.FLAGS.rounds):
        for name, function in (("theirs", theirs), ("ours", ours)):
            one, all_ = (seconds(lambda n=n, f=function: f(n), pause=PAUSE) for n in (1, every))
            times[name].append((one, (all_ - one) / (every - 1)))
    first, token = ({name: statistics.median(x[i] for x in own) for name, own in times.items()} for i in range(2))
    ratio = statistics.median(b[1] / a[1] for a, b in zip(times["theirs"], times["ours"], strict=True))
    whole = statistics.median(
        (b[0] + b[1] * (every - 1)) / (a[0] + a[1] * (every - 1))
        for a, b in zip(times["theirs"], times["ours"], strict=True)
    )
    each = " | ".join(
        f"{1e3 * first[name]:.0f} ms, {1e3 * token[name]:.1f} ms ({batch / token[name]:.0f} tokens/s)"
        for name in ("theirs", "ours")
    )
    return f"| {batch} | {each} | {ratio:.2f} | {whole:.2f} |"


def main(_) -> None:
    """Print the table."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")
    print("| prompts | transformers: first token, each further one | cinema_jax | ratio of a token | of all |")
    print("|---|---|---|---|---|")
    with torch.no_grad():
        for batch in map(int, BATCHES.value):
            print(row(batch), flush=True)


if __name__ == "__main__":
    command.with_huge_pages()
    app.run(main)
