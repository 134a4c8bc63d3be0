"""What a run would take on a mesh that is not at hand: memory, traffic, time."""
