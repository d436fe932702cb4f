"""Toy models of superposition (section 3.1 of the paper)."""
