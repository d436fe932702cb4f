"""Programs that JAX compiles: how long they live, what they need, how devices share them."""
