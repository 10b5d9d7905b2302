"""The decoder of a TensorRT engine: it feeds a step to the engine run by run, and chooses tokens where logits lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from opt_trt.backends.tensorrt.bindings import HIDDEN, LOGITS, Run, cache_names
from opt_trt.backends.tensorrt.slots import SlotRun, SlotSpec, begun, cut
from opt_trt.runtime.sampling.on_device import choice
from opt_trt.step import StepInputs, StepOutputs

ALIGNED = 64  # int32 numbers, 256 bytes: an input of an engine begins at a multiple of it


class SlotDecoder:
    """`Decoder` over a `Run`, whose caches lie on the device of the spec."""

    def __init__(self, spec: SlotSpec, run: Run) -> None:
        self.spec = spec
        self._run = run
        self._names = cache_names(spec.num_layers // 2)
        self._feeds = FeedBuffer(torch.device(spec.device))

    @torch.inference_mode()
    def step(self, inputs: StepInputs, kv_cache: Sequence[torch.Tensor]) -> StepOutputs:
        """See `Decoder.step`; `kv_cache` holds keys and values of each layer in turn."""
        for slot in begun(inputs):  # memory that was never written, or an overflow of the last owner: 0 * NaN is NaN
            torch._foreach_zero_([cache[slot] for cache in kv_cache])
        runs = cut(inputs, self.spec, num_slots=len(kv_cache[0]))
        placed = self._feeds.place([run.feeds for run in runs])
        outputs = [self._compute(run, feeds, kv_cache) for run, feeds in zip(runs, placed, strict=True)]
        return self._outputs(inputs, [token for run in runs for token in run.tokens], outputs)

    def _compute(
        self, run: SlotRun, feeds: Mapping[str, torch.Tensor], kv_cache: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the wanted rows of a run's outputs."""
        caches = {name: cache[run.slots] for name, cache in zip(self._names, kv_cache, strict=True)}
        outputs = self._run(run.profile, feeds, caches)
        return {name: outputs[name][: len(run.tokens)] for name in (LOGITS, HIDDEN)}

    def _outputs(
        self, inputs: StepInputs, tokens: Sequence[int], outputs: Sequence[Mapping[str, torch.Tensor]]
    ) -> StepOutputs:
        """Put the rows of all runs, which are of `tokens`, in the order of the step."""
        row_of = {token: row for row, token in enumerate(tokens)}
        found = {name: torch.cat([part[name] for part in outputs]) for name in (LOGITS, HIDDEN)}
        logits = _take(found[LOGITS], [row_of[token] for token in inputs.last_token_ids.tolist()]).float()
        hidden = None
        if inputs.hidden_token_ids is not None:
            rows = [row_of[token] for token in inputs.hidden_token_ids.tolist()]
            hidden = _take(found[HIDDEN], rows).float().cpu()
        if not inputs.chooses:
            return StepOutputs(logits.cpu(), hidden)
        draws = None if inputs.draws is None else inputs.draws.to(logits.device)
        chosen = torch.stack([part.double() for part in choice(logits, draws)], 1).cpu()  # one copy, one wait
        return StepOutputs(chosen[:, :1].float(), hidden, chosen[:, 1:].long())


class FeedBuffer:
    """The inputs of a step in one piece of memory on the host and one on the device, so that one copy moves them.

    A step must have ended before the next one is placed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._host, self._there = self._memory(0)

    def place(self, feeds: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Copy int32 tensors to the device."""
        sizes = [-(-tensor.numel() // ALIGNED) * ALIGNED for run in feeds for tensor in run.values()]
        if sum(sizes) > len(self._host):
            self._host, self._there = self._memory(2 * sum(sizes))
        for tensor, part in zip((t for run in feeds for t in run.values()), self._cut(self._host, sizes), strict=True):
            part[: tensor.numel()] = tensor.flatten()
        self._there[: sum(sizes)].copy_(self._host[: sum(sizes)], non_blocking=True)
        parts = iter(self._cut(self._there, sizes))
        return [{name: next(parts)[: t.numel()].view(t.shape) for name, t in run.items()} for run in feeds]

    def _memory(self, numbers: int) -> tuple[torch.Tensor, torch.Tensor]:
        pinned = self._device.type != "cpu"
        host = torch.zeros(numbers, dtype=torch.int32, pin_memory=pinned)
        return host, torch.zeros(numbers, dtype=torch.int32, device=self._device)

    @staticmethod
    def _cut(memory: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        return memory[: sum(sizes)].split_with_sizes(list(sizes))


def _take(rows: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """Return some rows in their order; all in order are not copied."""
    return rows if wanted == list(range(len(rows))) else rows[torch.tensor(wanted, device=rows.device)]
