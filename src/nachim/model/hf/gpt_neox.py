"""GPT-NeoX and Pythia: partly rotary heads, queries, keys and values interleaved."""
