"""A byte-level language model of Python source, decomposed position by position."""
