"""The CPU weight-transfer back end of vLLM, `gloo`. Lives in the worker processes of an engine.

vLLM finds it through the `vllm.general_plugins` entry point of this package, which every vLLM process loads.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from cluster.orphan import end_with_parent
from cluster.stacks import tell_when_asked
from cluster.wire import Meta, broadcast, empty, gloo_group, unpack

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo

NAME = "gloo"


def register() -> None:
    """Entry point of `vllm.general_plugins`; vLLM may call it more than once in one process."""
    end_with_parent()
    tell_when_asked()
    with suppress(ValueError):  # already registered
        WeightTransferEngineFactory.register_engine(NAME, GlooTransfer)


@dataclass
class GlooInit(WeightTransferInitInfo):
    host: str  # of the learner's rank 0, which is rank 0 of the group
    port: int
    rank_offset: int  # group rank of this engine's first worker
    world_size: int  # the learner's rank 0 and every worker of every engine
    timeout_s: float


@dataclass
class GlooBucket(WeightTransferUpdateInfo):
    bucket: list[Meta]  # one message, see wire.buckets


class GlooTransfer(WeightTransferEngine[GlooInit, GlooBucket]):
    """Receives buckets by broadcast and loads them through vLLM's layerwise reload."""

    init_info_cls = GlooInit
    update_info_cls = GlooBucket

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: ProcessGroupGloo | None = None
        self._updating = False

    def init_transfer_engine(self, init_info: GlooInit) -> None:
        self.shutdown()  # first, or peers of an older group would wait for us until their time is up
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._group = gloo_group(init_info.host, init_info.port, rank, init_info.world_size, init_info.timeout_s)

    def start_weight_update(self) -> None:
        if self._updating:  # an earlier push broke off: close its half-loaded layers, or they would count twice
            finalize_layerwise_reload(self.model, self.model_config)
        self._updating = True
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # The base class ends with torch.accelerator.synchronize(), which raises where there is no accelerator.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooBucket) -> None:
        if self._group is None:
            raise RuntimeError("no group to receive weights from; call init_weight_transfer_engine first")
        flat = empty(update_info.bucket)
        problem = ""
        try:
            broadcast(self._group, flat)
        except RuntimeError as error:
            problem = str(error)
        if problem:  # raised outside the handler: a traceback would keep the group, and thereby its peers, alive
            self.shutdown()
            raise RuntimeError(f"the learner's weights did not arrive: {problem}")
        self.model.load_weights(unpack(update_info.bucket, flat))  # type: ignore[operator]

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if getattr(self.model_config.hf_text_config, "tie_word_embeddings", False):
            repack_heads(self.model)
        self._updating = False

    def shutdown(self) -> None:
        self._group = None


def repack_heads(model: torch.nn.Module) -> None:
    """Makes output layers pack their weight anew; needed where they share the embedding's.

    On CPU an output layer multiplies with a packed copy of its weight. The layerwise reload fills a tied weight through
    the embedding and never tells the output layer, which would go on with its old copy: the push reports success and
    the engine samples from a mixture of two models.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
