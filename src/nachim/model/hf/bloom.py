"""BLOOM: ALiBi, a norm of the embedding, queries, keys and values interleaved."""
