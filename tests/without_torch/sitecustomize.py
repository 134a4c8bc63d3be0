"""A process that has this folder on its path finds no PyTorch, as most users have none: to import it takes two seconds,
and transformers does where it can."""

import sys

sys.modules["torch"] = None
