"""Attention for every model, behind one function."""

from cinema_jax.models.attention.dispatch import attention, attention_backend
from cinema_jax.models.attention.mesh import context_exchange

__all__ = ["attention", "attention_backend", "context_exchange"]
