"""A run's folder and what it holds: parts, checkpoints, finished stages, and where each part's weights come from."""
