"""CINEMA in JAX: coherent video of several subjects from independent reference images (arXiv 2503.10391)."""

__version__ = "0.1.0"
