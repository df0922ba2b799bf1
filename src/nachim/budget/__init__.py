"""Money, time and hardware to a plan. Never imports torch."""
