"""OLMo 2: norms behind the sublayers, and queries and keys normalised across their heads."""
