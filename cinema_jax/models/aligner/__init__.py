"""AlignerNet."""
