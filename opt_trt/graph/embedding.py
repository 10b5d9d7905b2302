"""OPT's `embedding`: token plus position, from tables that are whole on every rank or sharded over ranks."""

from __future__ import annotations

import torch

from opt_trt.model.config import ModelConfig
from opt_trt.model.placement import COLUMNS, VOCAB_ROWS, WHOLE, placements
from opt_trt.ops import Ops

EMBEDDING_WEIGHTS = ("transformer.vocab_embedding.weight", "transformer.position_embedding.weight")


class Embedding(torch.nn.Module):
    """Token and position ids [T] → hidden states [T, E], from whole tables `vocab` [V, E] and `position` [P, E]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.tp_size, self.hidden_size = config.mapping.tp_size, config.hidden_size

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, vocab: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Add the rows of both tables; ids must be valid."""
        return self.ops.embedding(input_ids, vocab) + self.ops.embedding(position_ids, position)


class HiddenSharded(Embedding):
    """The embedding from columns [V, E / tp] and [P, E / tp] of the tables."""

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, vocab: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Add the rank's features of both tables, then gather the features of all ranks."""
        return self.ops.all_gather(super().forward(input_ids, position_ids, vocab, position), self.hidden_size)


class VocabularySharded(Embedding):
    """The embedding from rows [ceil(V / tp), E] and [ceil(P / tp), E] of the tables; `tp_rank` [1] says which rows."""

    def forward(  # type: ignore[override]  # programs of one rank take no rank
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        vocab: torch.Tensor,
        position: torch.Tensor,
        tp_rank: torch.Tensor,
    ) -> torch.Tensor:
        """Add over all ranks: one rank has the row, the others add zero."""
        return self.ops.all_reduce(self._rows(input_ids, vocab, tp_rank) + self._rows(position_ids, position, tp_rank))

    def _rows(self, ids: torch.Tensor, table: torch.Tensor, tp_rank: torch.Tensor) -> torch.Tensor:
        row = ids - tp_rank * table.shape[0]
        held = (row >= 0) & (row < table.shape[0])
        return torch.where(held.unsqueeze(1), self.ops.embedding(torch.where(held, row, 0), table), 0.0)


MODULES = {WHOLE: Embedding, COLUMNS: HiddenSharded, VOCAB_ROWS: VocabularySharded}


def embedding_module(config: ModelConfig, ops: Ops) -> Embedding:
    """Return the embedding that fits the tables of a checkpoint's ranks."""
    return _module_class(config)(config, ops)


def embedding_constants(config: ModelConfig, tp_rank: int, device: str = "cpu") -> list[torch.Tensor]:
    """Return the inputs that the program takes besides ids and tables."""
    return [torch.full((1,), tp_rank, device=device)] if _module_class(config) is VocabularySharded else []


def communicates(config: ModelConfig) -> bool:
    """Say whether the embedding exchanges data with other tensor-parallel ranks."""
    return _module_class(config) is not Embedding


def _module_class(config: ModelConfig) -> type[Embedding]:
    split = placements(config)[EMBEDDING_WEIGHTS[0]].split
    return Embedding if config.mapping.tp_size == 1 else MODULES[split]
