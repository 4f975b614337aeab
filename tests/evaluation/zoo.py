"""Networks that others wrote, small and with random weights, and what each is called with.

`transformers` builds its own from configurations, without a network or a file; PyTorch has some;
and one is as people write it by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import nn

WORDS, LENGTH, SIDE, WIDE = 50, 7, 32, 16
"""Words known, words of a sentence, rows of an image, and numbers of a token."""


def draws(*shapes):
    """Return what draws tensors ``[examples, *shape]``."""
    return lambda examples: tuple(torch.randn(examples, *shape) for shape in shapes)


SEES = {
    "words": lambda examples: (torch.randint(WORDS, (examples, LENGTH)),),
    "images": draws((3, SIDE, SIDE)),
    "rows": draws((5,)),
    "rows, rows": draws((5,), (5,)),
    "pairs of rows": draws((2, 3, 5)),
    "sequences": draws((LENGTH, 5)),
    "tokens": draws((LENGTH, WIDE)),
    "tokens, other tokens": draws((LENGTH, WIDE), (3, WIDE)),
    "rows, a state": draws((5,), (WIDE,)),
    "rows, a state, a cell": draws((5,), (WIDE,), (WIDE,)),
}
"""What networks are called with: what draws the positional arguments for so many examples."""


@dataclass(frozen=True)
class Entry:
    """A network, and what it is called with."""

    sees: str
    build: Callable[[], nn.Module]
    kwargs: tuple = ()
    long: bool = False
    """Whether capturing it takes seconds."""


def of_transformers(sees, kind, config, *, long=False, **settings):
    """Return a network of a class and a configuration of `transformers`."""

    def build():
        room = import_module("transformers")
        return getattr(room, kind)(getattr(room, config)(**settings))

    kwargs = (("use_cache", False),) if kind.endswith(("CausalLM", "LMHeadModel")) else ()
    return Entry(sees, build, kwargs, long)


class ClassToken(nn.Module):
    """A vision transformer by hand: patches, a class token, positions, blocks, a head."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDE, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, WIDE))
        self.positions = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2 + 1, WIDE))
        self.blocks = nn.Sequential(*[encoder_layer(norm_first=True) for _ in range(2)])
        self.head = nn.Linear(WIDE, 5)

    def forward(self, x):
        seen = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), seen], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 0])


class Over(nn.Module):
    """A recurrent layer over time, and a head on what it says last."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = kind(5, WIDE, batch_first=True, **settings)
        self.head = nn.Linear(WIDE * (1 + self.layer.bidirectional), 2)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Step(nn.Module):
    """A recurrent policy: from what it sees and its state to what it does and the next state."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(5, WIDE), nn.Linear(WIDE, 2)

    def forward(self, x, *state):
        state = self.cell(x, state if len(state) > 1 else state[0])
        return self.head(state[0] if isinstance(state, tuple) else state), state


def encoder_layer(**settings):
    return nn.TransformerEncoderLayer(WIDE, 2, 32, batch_first=True, **settings)


TEXT = {"vocab_size": WORDS, "hidden_size": WIDE, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "intermediate_size": 32}
FAR = {"max_position_embeddings": 32}
GROUPED = {"num_key_value_heads": 1}
IMAGE = {"image_size": SIDE}
OWN = {"bos_token_id": 0, "eos_token_id": 1}

NETWORKS = {
    "GPT-2": of_transformers(
        "words",
        "GPT2LMHeadModel",
        "GPT2Config",
        vocab_size=WORDS,
        n_positions=16,
        n_embd=WIDE,
        n_layer=2,
        n_head=2,
        **OWN,
    ),
    "Llama": of_transformers(
        "words", "LlamaForCausalLM", "LlamaConfig", **TEXT, **HEADS, **GROUPED, **FAR
    ),
    "Qwen3": of_transformers(
        "words",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        long=True,
        **TEXT,
        **HEADS,
        **GROUPED,
        **FAR,
        head_dim=8,
    ),
    "BERT": of_transformers(
        "words", "BertForSequenceClassification", "BertConfig", **TEXT, **HEADS, **FAR
    ),
    "ViT": of_transformers(
        "images",
        "ViTForImageClassification",
        "ViTConfig",
        **HEADS,
        **IMAGE,
        patch_size=8,
        hidden_size=WIDE,
        num_hidden_layers=2,
    ),
    "Swin": of_transformers(
        "images",
        "SwinForImageClassification",
        "SwinConfig",
        **IMAGE,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
    "ConvNeXt": of_transformers(
        "images",
        "ConvNextForImageClassification",
        "ConvNextConfig",
        hidden_sizes=[8, 12],
        depths=[1, 1],
        num_stages=2,
    ),
    "ResNet": of_transformers(
        "images",
        "ResNetForImageClassification",
        "ResNetConfig",
        embedding_size=8,
        hidden_sizes=[8, WIDE],
        depths=[1, 1],
        layer_type="basic",
    ),
    "MobileNetV2": of_transformers(
        "images",
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        long=True,
        **IMAGE,
        depth_multiplier=0.1,
        min_depth=4,
        depth_divisible_by=4,
    ),
    "RWKV": of_transformers(
        "words", "RwkvForCausalLM", "RwkvConfig", long=True, **TEXT, context_length=16
    ),
    "Mamba": of_transformers(
        "words", "MambaForCausalLM", "MambaConfig", long=True, **TEXT, state_size=4
    ),
    "ViT by hand": Entry("images", ClassToken),
    "nn.TransformerEncoderLayer": Entry("tokens", encoder_layer),
    "nn.Transformer": Entry(
        "tokens, other tokens",
        lambda: nn.Transformer(WIDE, 2, 1, 1, 32, batch_first=True),
    ),
    "nn.RNN": Entry("sequences", lambda: Over(nn.RNN)),
    "nn.GRU": Entry("sequences", lambda: Over(nn.GRU)),
    "nn.LSTM": Entry("sequences", lambda: Over(nn.LSTM)),
    "nn.LSTM, two layers, both ways": Entry(
        "sequences", lambda: Over(nn.LSTM, num_layers=2, bidirectional=True)
    ),
    "nn.RNNCell": Entry("rows, a state", lambda: Step(nn.RNNCell)),
    "nn.GRUCell": Entry("rows, a state", lambda: Step(nn.GRUCell)),
    "nn.LSTMCell": Entry("rows, a state, a cell", lambda: Step(nn.LSTMCell)),
}
"""By the name that the first table of docs/modules.md has."""
