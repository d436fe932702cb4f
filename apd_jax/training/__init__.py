"""Training of components: configuration, optimiser, step, initialisation, refinement."""
