"""Drawing that studies share: arrays in, matplotlib figures out."""
