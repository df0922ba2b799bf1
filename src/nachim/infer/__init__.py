"""Text from weights: an engine that serves many requests at once, each as if it were alone."""
