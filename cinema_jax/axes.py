"""The names of the mesh's axes, in their order, and what is split along which."""

# Groups of chips that a slower network joins; each holds a whole copy of the state.
SLICE = "slice"
# Copies of the state within a slice.
DATA = "data"
# Samples, and the state.
FSDP = "fsdp"
# The tokens of a sequence, and the state.
CONTEXT = "context"
# Heads and features.
TENSOR = "tensor"

AXES = (SLICE, DATA, FSDP, CONTEXT, TENSOR)
# What the rows of a batch are split over.
BATCH = (SLICE, DATA, FSDP)
# What parameters, their average and their moments are split over, on one of their axes.
STATE = (FSDP, CONTEXT)
