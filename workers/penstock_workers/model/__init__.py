"""Where a model comes from: sources, the shared cache, and what lies there."""
