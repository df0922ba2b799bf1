"""Documents to tokens in a known order: read, deduplicate, split, tokenize, pack. Never imports torch."""
