"""The hand-coded network of gated functions, in which each weight belongs to a known function."""
