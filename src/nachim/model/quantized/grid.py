"""The values that a matrix in few bits may have, and the rounding of weights to them.

A `Grid` belongs to one matrix [O outputs, I inputs] whose rows are cut into G groups, each with a scale of its own. It
is fitted once, to the weights; then any columns can be rounded to it, those of GPTQ one after the other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nachim.spec import NF4, Int4, Int8, UserError
from nachim.spec.quantize import Scheme

LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The levels of NF4 (arXiv 2305.14314, app. E)."""
BORDERS = tuple((low + high) / 2 for low, high in itertools.pairwise(LEVELS))
"""Half-way between neighbouring levels; what lies on a border is rounded down."""
MIDDLE, TOP4, TOP8 = 8, 15, 127
E4M3_MAX = 448.0


class Double(NamedTuple):
    """The magnitudes of NF4's groups in 8 bits: codes [O * G] e4m3, a scale for each 256 of them, and their mean."""

    codes: Tensor
    scales: Tensor
    mean: Tensor

    def decode(self) -> Tensor:
        """The magnitudes, [O * G] fp32."""
        scales = self.scales.repeat_interleave(NF4.BLOCK)[: len(self.codes)]
        return self.codes.float() * scales + self.mean


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that the weights of one matrix [O, I] may have.

    `scale_OG` and `zero_OG` are fp32 and hold what is stored (numbers of bf16 of Int8 and Int4, whole zeros): what
    is decoded now is what will be decoded from the file. A weight is (code - zero) * scale, of NF4 level[code] * scale.
    """

    scheme: Scheme
    scale_OG: Tensor
    zero_OG: Tensor | None = None
    """Only of Int4 that is not symmetric; the zero of Int8 is 0, of other Int4 8."""
    double: Double | None = None
    """What `scale_OG` was decoded from, of NF4 with double quantisation."""
    inputs: int = 0
    """I, the columns of the matrix."""

    def round(self, weight_OI: Tensor, first: int = 0) -> Tensor:
        """Codes of the nearest values, [O, C] int8 of Int8 and uint8 of others.

        `weight_OI` holds C columns of the matrix from column `first` on, all of them by default; they need not be those
        that the grid was fitted to.
        """
        scale, zero = self._each(self.scale_OG, first, weight_OI), self._zero(first, weight_OI)
        ratio = weight_OI.float() / torch.where(scale == 0, 1.0, scale)
        if isinstance(self.scheme, NF4):
            borders = torch.tensor(BORDERS, device=ratio.device)
            return torch.bucketize(ratio, borders, out_int32=True).to(torch.uint8)
        codes = ratio.round() + zero
        if isinstance(self.scheme, Int8):
            return codes.clamp(-TOP8, TOP8).to(torch.int8)
        return codes.clamp(0, TOP4).to(torch.uint8)

    def decode(self, codes_OI: Tensor, first: int = 0) -> Tensor:
        """Values [O, C], fp32, of the codes of C columns from column `first` on."""
        codes_OI = _leveled(codes_OI) if isinstance(self.scheme, NF4) else codes_OI.float()
        if codes_OI.shape[1] < self.inputs:
            return (codes_OI - self._zero(first, codes_OI)) * self._each(self.scale_OG, first, codes_OI)
        codes_OGW = codes_OI.unflatten(1, (self.scale_OG.shape[1], -1))  # the whole matrix: nothing is made of its size
        if self.zero_OG is not None:
            codes_OGW -= self.zero_OG[..., None]
        elif middle := self._middle:
            codes_OGW -= middle
        return codes_OGW.mul_(self.scale_OG[..., None]).flatten(1)

    def nearest(self, weight_OI: Tensor, first: int = 0) -> Tensor:
        """The nearest values of C columns from column `first` on, [O, C] fp32."""
        return self.decode(self.round(weight_OI, first), first)

    @property
    def _middle(self) -> float:
        """The zero of every group where none is kept."""
        return float(MIDDLE) if isinstance(self.scheme, Int4) else 0.0

    def _zero(self, first: int, like_OI: Tensor) -> Tensor | float:
        return self._middle if self.zero_OG is None else self._each(self.zero_OG, first, like_OI)

    def _each(self, shared_OG: Tensor, first: int, like_OI: Tensor) -> Tensor:
        """What groups share, for each of the columns from `first` on: [O, C], or [O, 1] where all are of one group."""
        width, last = self.scheme.width(self.inputs), first + like_OI.shape[1] - 1
        if not 0 <= first <= last < self.inputs:
            raise ValueError(f"columns {first} to {last} of a matrix of {self.inputs}")
        if first // width == last // width:
            return shared_OG[:, first // width, None]
        groups = torch.arange(first, last + 1, device=shared_OG.device) // width
        return shared_OG[:, groups]


def _leveled(codes_OI: Tensor) -> Tensor:
    """The levels of NF4 that codes stand for."""
    table = torch.tensor(LEVELS, device=codes_OI.device)
    return table.index_select(0, codes_OI.flatten().int()).view(codes_OI.shape)


def fit(weight_OI: Tensor, scheme: Scheme, reach_OG: Tensor | float = 1.0) -> Grid:
    """The grid of a matrix [O, I]: each group reaches from its least weight to its largest, times `reach_OG`.

    Raises UserError where groups do not divide the rows, or a weight is not finite.
    """
    outputs, inputs = weight_OI.shape
    if not torch.isfinite(weight_OI).all():
        raise UserError("a weight is not finite: it cannot be quantised")
    weight_OGW = weight_OI.detach().float().view(outputs, -1, scheme.width(inputs))
    grid = Grid(scheme, weight_OGW.abs().amax(-1) * reach_OG, inputs=inputs)
    if isinstance(scheme, Int8):
        return replace(grid, scale_OG=_stored(grid.scale_OG / TOP8))
    if isinstance(scheme, NF4):
        return doubled(grid) if scheme.double else grid
    if scheme.symmetric:
        extreme_OG = weight_OGW.gather(-1, weight_OGW.abs().argmax(-1, keepdim=True))[..., 0]
        return replace(grid, scale_OG=_stored(extreme_OG * reach_OG / -MIDDLE))
    low_OG, high_OG = (weight_OGW.amin(-1).clamp(max=0) * reach_OG, weight_OGW.amax(-1).clamp(min=0) * reach_OG)
    scale_OG = _stored((high_OG - low_OG) / TOP4)
    zero_OG = (-low_OG / torch.where(scale_OG == 0, 1.0, scale_OG)).round().clamp(0, TOP4)
    return replace(grid, scale_OG=scale_OG, zero_OG=zero_OG)


def _stored(scale_OG: Tensor) -> Tensor:
    return scale_OG.to(torch.bfloat16).float()


def doubled(grid: Grid) -> Grid:
    """The same grid, its magnitudes in 8 bits."""
    scales = grid.scale_OG.flatten()
    mean = scales.mean()
    blocks = F.pad(scales - mean, (0, -len(scales) % NF4.BLOCK)).view(-1, NF4.BLOCK)
    largest = blocks.abs().amax(-1) / E4M3_MAX
    codes = (blocks / torch.where(largest == 0, 1.0, largest)[:, None]).to(torch.float8_e4m3fn)
    double = Double(codes.flatten()[: len(scales)].clone(), largest, mean)
    return replace(grid, scale_OG=double.decode().view_as(grid.scale_OG), double=double)


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix in few bits: its grid and the codes [O, I] of its weights.

    Where `divisor_I` [I] is given, fp32, the codes are those of the matrix with its columns multiplied by it, and what
    is multiplied by the matrix is divided by it first (AWQ, where no layer before can take the division in).
    """

    grid: Grid
    codes_OI: Tensor
    divisor_I: Tensor | None = None

    def decode(self) -> Tensor:
        """The weights [O, I] in fp32, the division made good."""
        weight_OI = self.grid.decode(self.codes_OI)
        return weight_OI if self.divisor_I is None else weight_OI / self.divisor_I


def nearest(weight_OI: Tensor, scheme: Scheme) -> Coded:
    """Round to nearest: every weight by itself, on the grid of its group's reach."""
    grid = fit(weight_OI, scheme)
    return Coded(grid, grid.round(weight_OI))
