"""Small encoders: a random BERT over bytes, and functions that a setting can name."""

from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests import toys


def tokenizer() -> PreTrainedTokenizerFast:
    return toys.tokenizer()


def bert(folder: Path, seed: int = 0) -> Path:
    """A folder as transformers saves it."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def letters(texts: list[str]) -> np.ndarray:
    """How often each of 64 classes of characters stands in a text: [n, 64]."""
    counts = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(counts, texts, strict=True):
        for character in text:
            row[ord(character) % 64] += 1
    return counts
