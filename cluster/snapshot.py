"""DeepSpeed's part of a checkpoint, taken into memory. Imports DeepSpeed: see zero.py for when that may be."""

from io import BytesIO
from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from cluster.disk import Disk


class Snapshot(TorchCheckpointEngine):
    """DeepSpeed's own, whose files go to `disk`. It serialises tensors while they stand still."""

    def __init__(self, config: Any, disk: Disk) -> None:
        super().__init__(config)
        self._disk = disk

    def save(self, state_dict: Any, path: str) -> None:
        taken = BytesIO()
        super().save(state_dict, taken)
        self._disk.put(lambda: Path(path).write_bytes(taken.getbuffer()))
