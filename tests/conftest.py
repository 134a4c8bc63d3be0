"""Every signature's shapes are checked at run time in tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# No test may ask the hub: names that hypothesis makes up look like repositories.
os.environ["HF_HUB_OFFLINE"] = "1"
# Most of the suite's time is compilation, and tiny programs need no optimisation.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

from jaxtyping import install_import_hook

install_import_hook("cinema_jax", "beartype.beartype")
