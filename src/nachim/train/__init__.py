"""Weights from tokens: one loop, handed a batch source and a loss."""
