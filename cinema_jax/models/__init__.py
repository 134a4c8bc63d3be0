"""The networks. Dimension letters, used in every signature:

| letter | meaning |
|---|---|
| B | batch |
| F | latent frames |
| H, W | latent height and width |
| C | channels |
| S | tokens of any sequence |
| N | heads |
| D | model width (or head size, where a heads axis stands before it) |
| K | references |
| L | MLLM tokens |
| P | image patches of the MLLM's vision tower |
| T | text (aligner) tokens |

Pixels are `frames height width rgb`, channels last, and floats in [-1, 1] unless a docstring says otherwise.
"""
