"""What a decomposition does on examples, in numbers: attributions, summaries, baselines, curves."""
