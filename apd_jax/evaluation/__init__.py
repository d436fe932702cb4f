"""Measures of a decomposition: networks and components in, numbers and arrays out."""
