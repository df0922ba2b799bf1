"""Wires the floors into the line from budget to verdict: ladder, store, forecast, launchers."""
