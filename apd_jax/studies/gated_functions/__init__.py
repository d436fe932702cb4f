"""The hand-coded network of gated functions, of which every weight's owner is known."""
