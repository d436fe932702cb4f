"""One run of an experiment: config, plan, the run itself, what it shows."""
