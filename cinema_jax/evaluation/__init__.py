"""The benchmark: held-out cases, a judge that never saw the generator, and what is measured with it."""
