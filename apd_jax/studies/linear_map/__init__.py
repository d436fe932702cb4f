"""Linear maps `y = x W`: the smallest study, to see what a loss does."""
