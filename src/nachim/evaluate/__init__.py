"""Numbers from weights."""
