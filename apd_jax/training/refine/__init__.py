"""Refinement: moves between stretches of training that mend what gradient descent can't."""
