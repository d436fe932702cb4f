"""One run of an experiment: config, setup, the run itself, what it shows."""
