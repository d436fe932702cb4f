"""What is minimised: loss terms, selection of active components, normalisation of losses."""
