"""Multi-token prediction: what is trained to look further ahead than the next token."""

from __future__ import annotations

from dataclasses import dataclass

from nachim.spec.cost import Matrix
from nachim.spec.norm import Norm
from nachim.spec.part import Part


@dataclass(frozen=True, kw_only=True)
class MTP(Part):
    """`depth` modules in a row, each of which predicts one token further (DeepSeek-V3, arXiv 2412.19437, sec. 2.2).

    Module k takes the normalised stream of the one before it (of the decoder, for the first) and the normalised
    embedding of the token k ahead, joins them by one matrix, and passes them through a block like the decoder's last.
    It has a last norm of its own; embedding and head are the decoder's. Training adds `weight` times the mean of
    their losses. To write text the decoder does without them; with them it drafts tokens for itself.
    """

    depth: int = 1
    weight: float = 0.3

    def check(self) -> None:
        self.require_positive("depth", "weight")

    def matrix(self, d_model: int) -> Matrix:
        """What joins stream and embedding in one module."""
        return Matrix(2 * d_model, d_model, split="columns")

    def joining(self, d_model: int) -> int:
        """Parameters of the matrices that join streams and embeddings."""
        return self.depth * self.matrix(d_model).params

    def norm_params(self, norm: Norm, d_model: int, last: bool) -> int:
        """Parameters of the norms beside the blocks; `last` says whether one stands before the head."""
        return self.depth * (2 + last) * norm.params(d_model)
