"""What an NVIDIA card proves and measures: `python -m benchmarks.gpu`, see `__main__.py`."""
