"""Every signature's shapes are checked at run time in tests."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("cinema_jax", "beartype.beartype")
