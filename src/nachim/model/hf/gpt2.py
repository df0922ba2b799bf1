"""GPT-2: a table of positions, matrices stored [in, out]."""
