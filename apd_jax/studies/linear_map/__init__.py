"""Linear maps `y = x W`: the smallest study, to examine the effect of a loss term."""
