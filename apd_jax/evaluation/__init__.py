"""What a decomposition does on examples: measured, summed up, drawn, and put on a page."""
