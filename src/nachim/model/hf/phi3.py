"""Phi-3 and Phi-4-mini: Llama with fused projections, partly rotary heads and LongRoPE."""
