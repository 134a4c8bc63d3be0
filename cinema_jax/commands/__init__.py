"""What all commands share: how they start, read their command line, and say what is wrong."""
