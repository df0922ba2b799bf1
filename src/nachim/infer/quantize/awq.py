"""AWQ: channels that carry large inputs are made larger before rounding, and grids reach less far where that is better.

A channel multiplied by s in a matrix is divided by s in what it reads, so that nothing changes but the rounding: its
error is divided by s too, as long as its group's scale stays (arXiv 2306.00978, sec. 3.2).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nachim.infer.quantize.calibrate import Seen
from nachim.infer.quantize.fold import Joint
from nachim.infer.quantize.gptq import moved
from nachim.model.quantized.grid import Coded, fit, nearest
from nachim.spec.quantize import Scheme

POWERS = tuple(step / 10 for step in range(1, 10))
"""Tried for s = (mean |x|)^power, beside 0, which leaves a channel as it is."""
REACHES = tuple(1 - step / 20 for step in range(11))
"""Tried for the share of a group's extremes that its grid reaches."""
LEAST = 1e-4
"""A channel's mean magnitude is taken as at least this share of the largest: one never seen has none."""


def scaled(joint: Joint, scheme: Scheme) -> float:
    """Scale the channels of a joint by the power whose rounding moves the readers' outputs least; that power.

    Weights and what was seen change in place, and what stands before too: the network gives what it gave.
    """
    magnitude_I = torch.stack([seen.magnitude_I for _, seen in joint.readers]).sum(0)
    if joint.heads is not None:
        each_KGE = magnitude_I.unflatten(0, (*joint.heads, -1))
        magnitude_I = each_KGE.mean(1, keepdim=True).expand_as(each_KGE).flatten()
    best, power, chosen_I = _error(joint, torch.ones_like(magnitude_I).float(), scheme), 0.0, None
    for each in POWERS:
        scale_I = factors(magnitude_I, each)
        error = _error(joint, scale_I, scheme)
        if error < best:
            best, power, chosen_I = error, each, scale_I
    if chosen_I is not None:
        joint.apply(chosen_I)
    return power


def factors(magnitude_I: Tensor, power: float) -> Tensor:
    """magnitude^power over the geometric mean of its ends, [I] in fp32 (arXiv 2306.00978, eq. 5)."""
    if not magnitude_I.any():
        return torch.ones_like(magnitude_I, dtype=torch.float32)
    scale_I = (magnitude_I / magnitude_I.max()).clamp(min=LEAST) ** power
    return (scale_I / (scale_I.max() * scale_I.min()).sqrt()).float()


def _error(joint: Joint, scale_I: Tensor, scheme: Scheme) -> float:
    """How far all outputs move when the readers are rounded with their columns multiplied by `scale_I`."""
    error = 0.0
    for weight_OI, seen in joint.readers:
        rounded_OI = nearest(weight_OI * scale_I, scheme).decode() / scale_I
        error += moved(rounded_OI - weight_OI, seen.moments_II.float()).sum().item()
    return error


def divided(weight_OI: Tensor, seen: Seen, scheme: Scheme) -> Coded:
    """The matrix by `scaled` and `clipped` where nothing before it can take the factors: what it reads is divided.

    The weight and what was seen stay as they are.
    """
    divisor_I = torch.ones(weight_OI.shape[1], device=weight_OI.device)
    own = Joint([(weight_OI.clone(), seen.copy())], divisor_I.copy_, [])
    power = scaled(own, scheme)
    coded = clipped(*own.readers[0], scheme)
    return replace(coded, divisor_I=divisor_I) if power else coded


def clipped(weight_OI: Tensor, seen: Seen, scheme: Scheme) -> Coded:
    """The matrix rounded on grids that reach less far, group by group and row by row, where outputs then move less.

    A group is judged by itself, by the second moments of its own channels.
    """
    outputs, inputs = weight_OI.shape
    width = scheme.width(inputs)
    blocks = [seen.moments_II[begin : begin + width, begin : begin + width] for begin in range(0, inputs, width)]
    moments_GWW = torch.stack(blocks).float()
    best_OG = torch.full((outputs, len(blocks)), torch.inf, device=weight_OI.device)
    reach_OG = torch.ones_like(best_OG)
    for reach in REACHES:
        change_OI = fit(weight_OI, scheme, reach).nearest(weight_OI) - weight_OI
        change_GOW = change_OI.view(outputs, -1, width).transpose(0, 1)
        error_OG = ((change_GOW @ moments_GWW) * change_GOW).sum(-1).mT
        reach_OG = torch.where(error_OG < best_OG, reach, reach_OG)
        best_OG = torch.minimum(error_OG, best_OG)
    grid = fit(weight_OI, scheme, reach_OG)
    return Coded(grid, grid.round(weight_OI))
