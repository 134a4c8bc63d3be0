"""What comes from outside, read with care: regular files, JSON, texts, and values of the right types."""
