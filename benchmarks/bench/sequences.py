"""Networks over sequences: transformers of words and of patches, and a recurrent policy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WORDS, _CLASSES = 256, 10


class Block(nn.Module):
    """Attention and two linear layers, each with its norm before it and added to what came in.

    Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture" (arXiv 2002.04745).

    Args:
        width: numbers of a token.
        heads: of the attention.
        causal: whether a token sees only those before it, and itself.

    Example:
        >>> Block(16, 2, causal=True)(torch.zeros(5, 7, 16)).shape
        torch.Size([5, 7, 16])
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens, ``[batch, tokens, width]``."""
        split = self.attend(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        query, key, value = split.unbind(2)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.gather(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return out


class CausalTransformer(nn.Module):
    """A language model as in GPT-2: words, positions, causal blocks, a score for every word.

    Example:
        >>> CausalTransformer(width=16, depth=1)(torch.zeros(5, 64, dtype=torch.long)).shape
        torch.Size([5, 64, 256])
    """

    def __init__(self, width: int = 128, depth: int = 4, tokens: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*[Block(width, 4, causal=True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Return a score for every next word, ``[batch, tokens, words]``."""
        scores: Tensor = self.head(self.norm(self.blocks(self.words(words) + self.positions)))
        return scores


class VisionTransformer(nn.Module):
    """Patches of 32x32 images and a class token, as in a ViT.

    Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words" (arXiv 2010.11929).

    Example:
        >>> VisionTransformer(width=24, depth=1)(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    def __init__(self, width: int = 192, depth: int = 6, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[Block(width, 3, causal=False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]``."""
        patches = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)[:, 0]))
        return logits


class RecurrentPolicy(nn.Module):
    """A recurrent cell and a linear layer: a step, whose state comes in and goes out.

    Example:
        >>> RecurrentPolicy()(torch.zeros(5, 8), torch.zeros(5, 64))[0].shape
        torch.Size([5, 2])
    """

    def __init__(self, inputs: int = 8, width: int = 64, outputs: int = 2) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(inputs, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return what to do, ``[batch, outputs]``, and the next state, ``[batch, width]``."""
        state = self.cell(x, state)
        return self.head(state), state
