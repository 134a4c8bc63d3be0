"""The names of the mesh's axes, in their order, and what is split along which."""

# Groups of chips that a slower network joins; each holds a whole copy of the state.
SLICE = "slice"
# Copies of the weights in use within a slice; the state is split over them too.
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
# What parameters that a computation gathers layer by layer are split over, on one of their axes.
WEIGHTS = (FSDP, CONTEXT)
# What the trained parameters, their average and their moments are split over between steps.
STATE = (*WEIGHTS, DATA)
