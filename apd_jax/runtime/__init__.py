"""Running a training: the loop, checkpoints, metrics, signals, devices and the run's directory."""
