"""From raw videos to clips that a model is trained on: shots, quality, duplicates, captions, subjects."""
