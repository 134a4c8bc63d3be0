"""What the multimodal LLM answers on meshes of virtual devices, for `test_mllm.py`, in a process of its own with eight:

python spoken.py FOLDER prints for each of `MESHES` the answers of the model in FOLDER, as JSON, and how much of its
weights lies on one device.
"""

import json
import math
import sys

import jax
import numpy as np
from float64 import split_what_is_small

from cinema_jax.models.qwen_vl.chat import Clip, ask
from cinema_jax.sampling.mllm import MLLM
from cinema_jax.sampling.room import sampler_mesh

MESHES = {
    "one": {"context": 1},
    "context": {"context": 8},
    "data, fsdp and tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


def chats():
    """Of unequal lengths; three do not split over four."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, size, np.uint8) for size in ((32, 32, 3), (64, 32, 3), (3, 32, 64, 3))]
    return [
        ask("what is this ?"),
        ask(*pictures[:2], "a bird and a fox"),
        ask("look :", Clip(pictures[2], 2.0), "who ?"),
    ]


def main(folder: str) -> None:
    """All meshes."""
    split_what_is_small()
    found = {}
    for name, sizes in MESHES.items():
        mesh = sampler_mesh(jax.devices()[: math.prod(sizes.values())], **sizes)
        mllm = MLLM.from_pretrained(folder, mesh=mesh)
        answers = mllm(chats(), max_new_tokens=12)
        kernel = mllm.params["mllm/layers/mlp/up_proj/kernel"]
        share = kernel.addressable_shards[0].data.size / kernel.size
        found[name] = {"answers": [(one.text, one.finished) for one in answers], "share": share}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
