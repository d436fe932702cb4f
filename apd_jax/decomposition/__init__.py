"""A network decomposed from Python: the call, its result, checks before it, saved files."""
