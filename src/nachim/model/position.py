"""How modules know the order of tokens, and the way most do: queries and keys that turn."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from nachim.model.build import build
from nachim.model.frame import Frame
from nachim.spec import MRoPE, NoPosition, RoPE


class PositionModule(nn.Module):
    """Base of position modules: leaves everything as it is. A layer has one; each kind overrides what it does."""

    def embed(self, x_BTD: Tensor, frame: Frame) -> Tensor:
        """Embedded tokens with their positions told, once, before the first layer."""
        return x_BTD

    def turn(self, x_BHTE: Tensor, frame: Frame) -> Tensor:
        """Queries or keys of the new tokens with their positions told."""
        return x_BHTE

    def bias(self, frame: Frame, keys: int, n_heads: int) -> Tensor | None:
        """What is added to the scores of the new tokens with the last `keys` tokens: [B or 1, n_heads, T, keys].

        The mask is not in it; what it says of tokens that may not be attended to has no meaning, but is finite.
        """
        return None

    def ramp(self, frame: Frame, keys: int, n_heads: int) -> tuple[Tensor, Tensor] | None:
        """Factors of heads [n_heads] and numbers of keys [keys], fp32, whose products are the bias, up to what is the
        same for all keys of a query; None where the bias is no such thing."""
        return None


class RoPEModule(PositionModule):
    """Turns each pair of channels by its position times its frequency."""

    def __init__(self, part: RoPE) -> None:
        super().__init__()
        self.part = part

    def turn(self, x_BHTE: Tensor, frame: Frame) -> Tensor:
        """[B, H, T, E] to the same, each head vector turned by its token's position."""
        width = x_BHTE.shape[-1]
        cos, sin = self.angles(width, x_BHTE.dtype, frame)
        turned = self.part.turned(width)
        if turned == width:
            return rotate(x_BHTE, cos, sin)
        return torch.cat((rotate(x_BHTE[..., :turned], cos, sin), x_BHTE[..., turned:]), -1)

    def angles(self, width: int, dtype: torch.dtype, frame: Frame) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [T, E] or [B, 1, T, E], E being what turns of heads of `width`."""
        return frame.once((self.part, width, dtype), lambda: self._angles(width, dtype, frame))

    def _angles(self, width: int, dtype: torch.dtype, frame: Frame) -> tuple[Tensor, Tensor]:
        context = self._context(frame)
        if frame.placed or context:
            return self._placed(frequencies(self.part, width, context).to(frame.device), frame.positions, dtype)
        room = 1 << max(0, frame.S - 1).bit_length()  # few tables serve all lengths
        cos_SE, sin_SE = turns(self.part, width, room, dtype, frame.device)
        if frame.counts_from_start:
            return cos_SE[frame.start : frame.S], sin_SE[frame.start : frame.S]
        return cos_SE[frame.positions][:, None], sin_SE[frame.positions][:, None]

    def _context(self, frame: Frame) -> int:
        """Tokens up to the last position, where they are more than the frequencies of short contexts serve; else 0."""
        scaling = self.part.scaling
        if scaling is None or scaling.until is None:
            return 0
        context = int(frame.positions.max()) + 1 if frame.placed or scaling.until < frame.S else frame.S
        return context if context > scaling.until else 0

    def _placed(self, frequency_e: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """As `_angles`, of any positions."""
        angle = positions[..., None].double() * frequency_e
        if angle.ndim == 4:
            angle = self.merged(angle)
        cos, sin = (table.to(dtype) for table in halves(angle, self.part))
        return (cos, sin) if angle.ndim == 2 else (cos[:, None], sin[:, None])

    def merged(self, angle_3BTe: Tensor) -> Tensor:
        """The angles [B, T, e] of positions with three axes: the first axis's."""
        return angle_3BTe[0]


class MRoPEModule(RoPEModule):
    """Turns some pairs by a token's time, some by its height and some by its width."""

    part: MRoPE

    def merged(self, angle_3BTe: Tensor) -> Tensor:
        """The angles [B, T, e]: those of each axis for its section of the pairs."""
        sections = angle_3BTe.split(self.part.sections, -1)
        return torch.cat([section[axis] for axis, section in enumerate(sections)], -1)


@functools.lru_cache(maxsize=32)
def turns(part: RoPE, d_head: int, seq_len: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """`rotations` in a precision on a device, kept for the next forward pass."""
    with torch.inference_mode(False):  # whoever asks first, training must be able to use them
        cos_TE, sin_TE = rotations(part, d_head, seq_len)
        return cos_TE.to(device, dtype), sin_TE.to(device, dtype)


def rotations(part: RoPE, d_head: int, seq_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [T, E], of the angles position * theta^(-2i/d_head) (arXiv 2104.09864, eq. 15).

    E is what turns of a head, and the frequencies are those of short contexts.
    """
    angle_Te = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies(part, d_head))
    return halves(angle_Te, part)


def frequencies(part: RoPE, d_head: int, context: int = 0) -> Tensor:
    """Radians a position of each pair that turns of a head, fp64 [e], in a context of so many tokens."""
    turned = part.turned(d_head)
    frequency_e = part.theta ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    if part.scaling is None:
        return frequency_e
    return torch.tensor(part.scaling.stretched(frequency_e.tolist(), part.theta, context), dtype=torch.float64)


def halves(angle: Tensor, part: RoPE) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., E] of angles [..., e] in fp32, times the part's magnitude.

    Both halves of the last axis hold the same angles; the first half of the sines is negated, so that
    `rotate` needs one multiply-add: this is the half-split layout of the Hugging Face Llama family.
    """
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    magnitude = 1.0 if part.scaling is None else part.scaling.magnitude
    return (cos * magnitude).float(), (sin * magnitude).float()


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """Turn each head vector by its position."""
    return x_BHTE * cos_TE + x_BHTE.roll(x_BHTE.shape[-1] // 2, -1) * sin_TE


@build.register
def _(part: RoPE, d_model: int) -> nn.Module:
    return RoPEModule(part)


@build.register
def _(part: MRoPE, d_model: int) -> nn.Module:
    return MRoPEModule(part)


@build.register
def _(part: NoPosition, d_model: int) -> nn.Module:
    return PositionModule()
