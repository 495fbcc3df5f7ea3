"""A checkpoint's configuration, read from its folder: config.json and the files of its image processor.

The type of model follows from config.json alone, never from the folder's name. Both layouts, llava-hf's and
the original's, become the same `ModelConfig`. Defaults are transformers', which it omits when it writes a
file: llava-hf's own config.json contains four fields of Vicuna and means Vicuna-7B.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from llava_worker.model.config.image_grid import HD_SHAPES, Fit, ImageLayout, OneTileFit, Resolution
from llava_worker.model.config.original_config import CLIP_L_336, is_original, to_hf_config
from llava_worker.model.config.text_config import Activation, ConfigPart, RopeConfig, TextConfig

__all__ = [
    "CheckpointError",
    "ImageConfig",
    "ModelConfig",
    "RopeConfig",
    "TextConfig",
    "VisionConfig",
    "read_config",
    "read_eos_ids",
    "read_image_config",
]

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
_NEXT_PINPOINTS = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


class CheckpointError(ValueError):
    """The folder has no supported checkpoint; the message says what is wrong with which file."""


class VisionConfig(ConfigPart):
    """The vision tower, CLIP's or SigLIP's."""

    model_type: Literal["clip_vision_model", "siglip_vision_model"] = "clip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: Literal[3] = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {key: value for key, value in values.items() if value is not None}
        return _VISION_DEFAULTS.get(str(values.get("model_type")), {}) | values

    @property
    def has_class_token(self) -> bool:
        return self.model_type == "clip_vision_model"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """The class token, if the tower has one, and the patches."""
        return self.num_patches + self.has_class_token


class ModelConfig(ConfigPart):
    """A LLaVA model: vision tower, projector, decoder, and how images become tiles and tokens.

    If ``image_aspect_ratio`` is None, the image processor's file decides whether images are padded.
    """

    model_type: Literal["llava", "llava_next"]
    text_config: TextConfig = Field(default_factory=TextConfig)
    vision_config: VisionConfig = Field(default_factory=lambda: VisionConfig.model_validate(CLIP_L_336))
    image_token_id: int = Field(default=32000, alias="image_token_index")
    projector_hidden_act: Activation = "gelu"
    projector_depth: int = Field(default=2, ge=0)  # linear layers with activations between; 0 is identity
    multimodal_projector_bias: bool = True
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tie_word_embeddings: bool = False
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None  # (height, width) in pixels
    mm_use_im_start_end: bool = False
    vision_tower_name: str | None = None  # the original layout's, whose files may lack the tower

    @model_validator(mode="before")
    @classmethod
    def _accept_both_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {key: value for key, value in values.items() if value is not None}
        if "image_token_id" in values:
            values.setdefault("image_token_index", values.pop("image_token_id"))
        return values

    def shard(self, num_ranks: int) -> ModelConfig:
        """Return each rank's configuration. Raises ValueError if the decoder cannot be sharded so."""
        return self.model_copy(update={"text_config": self.text_config.shard(num_ranks)})

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        num_layers = self.vision_config.num_hidden_layers
        for layer in self._feature_layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise ValueError(f"vision_feature_layer {layer} of a tower with {num_layers} layers")
        if not self.projector_depth and self.feature_size != self.text_config.hidden_size:
            raise ValueError(
                f"no projector between features of {self.feature_size} and a decoder of "
                f"{self.text_config.hidden_size}"
            )
        _ = self.image_layout()  # raises for an impossible grid
        return self

    @property
    def is_tied(self) -> bool:
        """Whether the LM head's weight is the embedding table."""
        return self.tie_word_embeddings or self.text_config.tie_word_embeddings

    @property
    def _feature_layers(self) -> tuple[int, ...]:
        layers = self.vision_feature_layer
        return (layers,) if isinstance(layers, int) else layers

    @property
    def feature_layers(self) -> list[int]:
        """The tower's hidden states that the projector reads, concatenated; 0 is the first layer's input."""
        return [layer % (self.vision_config.num_hidden_layers + 1) for layer in self._feature_layers]

    @property
    def feature_size(self) -> int:
        """The projector's input width."""
        return self.vision_config.hidden_size * len(self._feature_layers)

    @property
    def drops_first_feature(self) -> bool:
        """Whether the tower's first position, usually the class token, is dropped."""
        return self.vision_feature_select_strategy == "default"

    @property
    def tokens_per_tile(self) -> int:
        return self.vision_config.num_positions - self.drops_first_feature

    @property
    def has_image_newline(self) -> bool:
        """Whether a learned feature ends each row of an image's patches."""
        return self.image_layout().has_grid

    def image_layout(self, fit: OneTileFit = "pad") -> ImageLayout:
        """Return how images become tiles and tokens; ``fit`` applies if config.json does not say."""
        side, tokens = self.vision_config.image_size, self.tokens_per_tile
        return ImageLayout(side, tokens, fit=self._fit(fit), grid=self._grid(side))

    def _fit(self, default: OneTileFit) -> Fit:
        if self.image_aspect_ratio == "hd":
            return "hd"
        if self.model_type == "llava_next":
            return "anyres"
        if self.image_aspect_ratio is None:
            return default
        if self.image_aspect_ratio == "pad":
            return "pad"
        # The original leaves it to the tower's own processor: CLIP's crops the center, SigLIP's squashes.
        return "crop" if self.vision_config.has_class_token else "squash"

    def _grid(self, side: int) -> tuple[Resolution, ...]:
        if self.image_aspect_ratio == "hd":
            return tuple((columns * side, rows * side) for columns, rows in HD_SHAPES)
        if self.model_type == "llava":
            return ()
        pinpoints = _NEXT_PINPOINTS if self.image_grid_pinpoints is None else self.image_grid_pinpoints
        return tuple((width, height) for height, width in pinpoints)


class ImageSize(ConfigPart):
    """The image processor's target size in pixels, if its file has both sides."""

    height: int | None = None
    width: int | None = None


class ImageConfig(ConfigPart):
    """preprocessor_config.json. ``do_pad`` is None if the file has none, as in llava-hf's own checkpoints."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1 / 255
    do_pad: bool | None = None
    size: ImageSize | int | None = None  # an int is the shortest edge

    @property
    def fit(self) -> OneTileFit:
        """How an image becomes square, unless config.json says so.

        LLaVA-1.5 was trained on padded images, even if its image processor's file does not say so. A file
        with both height and width is SigLIP's or similar: it squashes images to that size.
        """
        if self.do_pad:
            return "pad"
        if isinstance(self.size, ImageSize) and self.size.height and self.size.width:
            return "squash"
        return "crop" if self.do_pad is False else "pad"


def read_config(folder: Path, vision_tower: Path | None = None) -> ModelConfig:
    """Read the model's configuration; an original checkpoint may need its vision tower's folder.

    Raises CheckpointError if there is none or it is not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: {folder} is not a model folder")
    values = _read_json(path)
    tower = None if vision_tower is None else _read_json(vision_tower / "config.json")
    if vision_tower is not None and not tower:
        raise CheckpointError(f"{vision_tower / 'config.json'} does not exist: no folder of a vision tower")
    try:
        return ModelConfig.model_validate(to_hf_config(values, tower) if is_original(values) else values)
    except ValueError as error:
        reason = _describe(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} is not a LLaVA model that can be served: {reason}") from error


def read_image_config(
    folder: Path, vision_tower: Path | None = None, *, vision: VisionConfig | None = None
) -> ImageConfig:
    """Read how images are preprocessed, from preprocessor_config.json or the newer processor_config.json.

    Original checkpoints have these files in the tower's folder. Without any, ``vision`` decides.
    """
    values = _image_processor(folder)
    if not values and vision_tower is not None:
        values = _image_processor(vision_tower)
    if not values and vision is not None and not vision.has_class_token:
        side = vision.image_size
        values = {"size": {"height": side, "width": side}}
        values |= {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    try:
        return ImageConfig.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise CheckpointError(
            f"the image processor's configuration in {folder}: {_describe(error)}"
        ) from error


def read_eos_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """Read the end-of-sequence tokens: generation_config.json's, else the decoder's."""
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    if eos is None:
        eos = config.text_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos)


def _image_processor(folder: Path) -> dict[str, Any]:
    values = _read_json(folder / "preprocessor_config.json")
    if not values:
        values = _read_json(folder / "processor_config.json").get("image_processor", {})
    return values


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object from a file; empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def _describe(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
