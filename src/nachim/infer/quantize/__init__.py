"""How weights are put into few bits. The grids they are rounded to are those of `nachim.model.quantized.grid`."""

from nachim.model.quantized.grid import Coded, Grid, fit, nearest

__all__ = ["Coded", "Grid", "fit", "nearest"]
