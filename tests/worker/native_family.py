"""A tiny checkpoint opened with the native engine, and images that the server has preprocessed for it."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np
from llava_server.images.choose_spec import choose_spec
from llava_server.images.image_processing import resize
from llava_wire.messages.job import ImageRef
from numpy.typing import NDArray
from PIL import Image

from tests.worker.engine.transformers.served_family import ServedFamily

__all__ = ["NativeFamily"]


class NativeFamily(ServedFamily):
    """A checkpoint that the worker has opened with the native engine and the checkpoint's chat template."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "--conversation", "checkpoint", "--precision", "fp32", engine="auto")
        engine = self.model.heartbeat.engine
        assert engine is not None
        assert engine.name == "native"

    def preprocess(self, images: Items[NDArray[np.uint8]], seq_id: str) -> list[tuple[ImageRef, bytes]]:
        return [
            self._preprocess(image, f"{seq_id}-{index}", len(images)) for index, image in enumerate(images)
        ]

    def _preprocess(self, image: NDArray[np.uint8], digest: str, num_images: int) -> tuple[ImageRef, bytes]:
        spec = choose_spec(self.model.heartbeat.image_spec, is_low_detail=False, num_images=num_images)
        height, width, _ = image.shape
        tiles = resize(
            Image.fromarray(image),
            side=spec.side,
            mode=spec.fit,
            background=spec.background,
            grid=spec.grid,
        )
        num_tiles = tiles.height // spec.side
        ref = ImageRef(digest=digest, num_tiles=num_tiles, side=spec.side, width=width, height=height)
        return ref, tiles.tobytes()
