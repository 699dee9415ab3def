"""A fault planted in an engine's worker processes, through vLLM's public `worker_extension_cls`."""

from cluster import transfer

_repack_heads = transfer.repack_heads


class Faults:
    def forget_to_repack(self, planted: bool) -> None:
        """Finish weight updates without the cure for tied embeddings."""
        transfer.repack_heads = (lambda model: None) if planted else _repack_heads
