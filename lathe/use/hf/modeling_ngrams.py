"""LlamaForCausalLM with a table by n-grams, for transformers 4.57 and 5. Written by lathe.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

The last two tokens at each position have a row in the table together, and so have the last three,
and so on up to `ngram_order`. The first half of these rows' sum is added to the embedding, the
other half to what the head reads. All else is the family's own class.

lathe copies this file into a folder that it exports, with the family of that network in the two
imports below; nothing in it needs lathe.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig as Config
from transformers import LlamaForCausalLM as Model

PRIME = 0x9E3779B1  # 2^32 over the golden ratio
POSITIVE = 0x7FFFFFFF  # 31 bits


class NGramsConfig(Config):
    """The family's, with `ngram_order`, `ngram_rows` (of each order) and `ngram_vocab_size`: how
    many ids n-grams are made of, which stays as it is when embeddings are resized."""

    model_type = f"{Config.model_type}_ngrams"


class NGramsForCausalLM(Model):
    """generate() hands on which ids are in a cache. Whoever calls forward with a cache himself
    passes them as `earlier_ids` (B, n), the last ones at least."""

    config_class = NGramsConfig

    def __init__(self, config: NGramsConfig):
        super().__init__(config)
        rows = (config.ngram_order - 1) * config.ngram_rows
        self.ngrams = nn.Embedding(rows, 2 * config.hidden_size)
        nn.init.zeros_(self.ngrams.weight)
        self.to_features: Tensor | None = None  # (B, T, C), while a forward pass runs
        last_norm = self.base_model.ln_f if hasattr(self.base_model, "ln_f") else self.model.norm
        last_norm.register_forward_hook(self.add_to_features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        earlier_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the family's. Raises ValueError without input_ids, and where ids in a cache are not
        known that the table has to look at."""
        if input_ids is None:
            raise ValueError("the table by n-grams reads ids: pass input_ids, not inputs_embeds")
        cache = kwargs.get("past_key_values", kwargs.get("cache"))  # transformers 4, 5
        n_cached = 0 if cache is None else int(cache.get_seq_length())
        ids = self.with_earlier(input_ids, earlier_ids, n_cached)
        positions = positions_in_texts(input_ids, attention_mask, position_ids, n_cached)
        vectors = self.ngrams(self.find_rows(ids, positions)).sum(dim=2)  # (B, T, 2 C)
        to_input, self.to_features = vectors.chunk(2, dim=-1)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        try:
            return super().forward(
                inputs_embeds=inputs_embeds + to_input.to(inputs_embeds),
                attention_mask=attention_mask,
                position_ids=position_ids,
                labels=labels,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        finally:
            self.to_features = None

    def add_to_features(self, norm: nn.Module, inputs: tuple, features: Tensor) -> Tensor:
        """A hook of the last norm."""
        return features + self.to_features.to(features)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict:
        """What generate() passes to forward: of input_ids, all so far, often the last alone."""
        earlier = kwargs.pop("earlier_ids", input_ids[:, :0])
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if inputs.get("input_ids") is not None:
            n_new = inputs["input_ids"].shape[1]
            ids = torch.cat((earlier, input_ids), dim=1)
            before = ids[:, : ids.shape[1] - n_new]
            inputs["earlier_ids"] = before[:, -(self.config.ngram_order - 1) :]
        return inputs

    def with_earlier(self, input_ids: Tensor, earlier_ids: Tensor | None, n_cached: int) -> Tensor:
        """(B, T) -> (B, order - 1 + T): the ids after those before them, 0 where there are none."""
        n_earlier = self.config.ngram_order - 1
        earlier = input_ids[:, :0] if earlier_ids is None else earlier_ids[:, -n_earlier:]
        n_needed = min(n_cached, n_earlier)
        if earlier.shape[1] < n_needed:
            raise ValueError(
                f"{n_cached} tokens are in the cache, and the table by n-grams looks at the last "
                f"{n_needed}: pass their ids, earlier_ids=ids[:, -{n_needed}:], or use generate() "
                "without prefill_chunk_size"
            )
        earlier = F.pad(earlier, (n_earlier - earlier.shape[1], 0))
        return torch.cat((earlier.to(input_ids), input_ids), dim=1)

    def find_rows(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, order - 1 + T) and (B or 1, T) -> (B, T, order - 1): rows of n-grams, short ones
        first. Of each a number is the row where there are rows for all, else its hash is."""
        c = self.config
        n_earlier = c.ngram_order - 1
        T = ids.shape[1] - n_earlier
        n_ids = c.ngram_vocab_size + 1  # none is one, too
        number = ids[:, n_earlier:] + 1  # (B, T)
        mixed = number
        rows = []
        for back in range(1, c.ngram_order):
            begin = n_earlier - back
            earlier = ids[:, begin : begin + T] + 1
            earlier = torch.where(positions >= back, earlier, 0)
            mixed = (mixed * PRIME + earlier) & POSITIVE
            mixed = mixed ^ (mixed >> 15)
            row = mixed
            if n_ids ** (back + 1) <= c.ngram_rows:
                number = number * n_ids + earlier
                row = number
            rows.append(row % c.ngram_rows + (back - 1) * c.ngram_rows)
        return torch.stack(rows, dim=-1)


def positions_in_texts(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, n_cached: int
) -> Tensor:
    """(B or 1, T): how many tokens of its own text stand before each one; padding is none."""
    T = input_ids.shape[1]
    positions = position_ids
    if positions is None:
        positions = torch.arange(n_cached, n_cached + T, device=input_ids.device).unsqueeze(0)
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
        counted = attention_mask.long().cumsum(dim=1)[:, -T:] - 1
        positions = torch.minimum(positions, counted)
    return positions
