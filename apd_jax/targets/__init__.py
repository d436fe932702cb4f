"""The toy networks of the paper, trained here: modules, inputs and labels."""
