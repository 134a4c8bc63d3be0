"""Arrays in files: names, types and slices of published tensors. Knows no network."""
