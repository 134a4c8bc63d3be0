"""From prompts and references to videos."""
