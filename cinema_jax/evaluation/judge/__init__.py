"""The judge: a small encoder of frames and reference pictures that says who is where. It never sees a generator."""
