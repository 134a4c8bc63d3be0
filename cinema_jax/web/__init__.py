"""The web page of `cinema_jax.serve`."""
