"""MPT: ALiBi, norms without biases, queries, keys and values in one matrix."""
