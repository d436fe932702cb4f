"""The network run with only some of its components: the masked forward pass and its products."""
