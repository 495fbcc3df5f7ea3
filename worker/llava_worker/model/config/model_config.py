"""Reads a checkpoint's configuration: config.json and the configuration file of the image processor.

The model type depends only on config.json, never on the name of the folder. All layouts (llava-hf, the
original one and that of TinyLLaVA Factory) are parsed into a `ModelConfig`. All defaults are the same as in
transformers, because transformers omits default values when it saves a configuration. For example, the
config.json published by llava-hf describes Vicuna-7B with only four fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from llava_worker.model.config.bounded_numbers import (
    MAX_FEATURE_LAYERS,
    MAX_TOKENS,
    Factor,
    HeadCount,
    ImageSide,
    LayerCount,
    LayerIndex,
    Proportion,
    TokenId,
    Width,
)
from llava_worker.model.config.image_grid import (
    HD_SHAPES,
    Fit,
    ImageLayout,
    Merge,
    OneTileFit,
    Resolution,
)
from llava_worker.model.config.original_config import (
    CLIP_L_336,
    SIGLIP_SO400M_384,
    is_original,
    max_tiles_of,
    to_hf_config,
)
from llava_worker.model.config.text_config import Activation, ConfigPart, RopeConfig, TextConfig
from llava_worker.model.config.tinyllava_config import from_tinyllava_config, is_tinyllava
from llava_worker.model.config.untrusted_file import (
    CheckpointError,
    read_json_object,
    require_model_type,
)

__all__ = [
    "TOKEN_IDS",
    "CheckpointError",
    "ImageConfig",
    "ModelConfig",
    "RopeConfig",
    "TextConfig",
    "VisionConfig",
    "describe_problems",
    "find_vision_tower",
    "read_config",
    "read_eos_ids",
    "read_image_config",
]

_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "siglip_vision_model": {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
# The defaults of transformers for the fields of each model type.
_MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava": {},
    "llava_next": {
        "image_grid_pinpoints": [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
    },
    "vipllava": {
        "vision_feature_layer": (-2, -5, -8, -11, 6),
        "projector_layernorm_eps": 1e-5,
    },
    "llava_onevision": {
        "image_token_index": 151646,
        "text_config": {},
        "vision_config": SIGLIP_SO400M_384 | {"num_hidden_layers": 26},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [(384 * i, 384 * j) for i in range(1, 7) for j in range(1, 7)],
    },
}
_TILED = ("llava_next", "llava_onevision")
# Names of fields in transformers, and their aliases.
_ALIASES = {"image_token_index": "image_token_id", "vision_feature_layer": "vision_feature_layers"}
# The types of parts whose configuration does not contain a type, unless they are those of LLaVA-1.5.
_PART_TYPES = {"llava_onevision": {"text_config": "qwen2", "vision_config": "siglip_vision_model"}}

_MAX_PATCHES = 1 << 14  # per tile; CLIP-L/14 with 336 pixels has 576
_MAX_GRID = 1 << 10
TOKEN_IDS: TypeAdapter[int | list[int]] = TypeAdapter(
    TokenId | Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]
)


class VisionConfig(ConfigPart):
    """Configuration of the vision tower (CLIP or SigLIP)."""

    model_type: Literal["clip_vision_model", "siglip_vision_model"] = "clip_vision_model"
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: LayerCount = 12
    num_attention_heads: HeadCount = 12
    num_channels: Literal[3] = 3
    image_size: ImageSide = 224
    patch_size: ImageSide = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Factor = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {key: value for key, value in values.items() if value is not None}
        return _VISION_DEFAULTS.get(str(values.get("model_type")), {}) | values

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if not 1 <= self.num_patches <= _MAX_PATCHES:
            raise ValueError(
                f"image_size ({self.image_size}) and patch_size ({self.patch_size}) result in "
                f"{self.num_patches} patches; a tile must have 1 to {_MAX_PATCHES}."
            )
        return self

    @property
    def has_class_token(self) -> bool:
        return self.model_type == "clip_vision_model"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """The number of patches, plus one if the tower has a class token."""
        return self.num_patches + self.has_class_token


class ModelConfig(ConfigPart):
    """Configuration of a LLaVA model: the vision tower, the projector, the decoder and the image layout.

    ``image_aspect_ratio`` has the same values as in the original layout: images are split into tiles if it is
    "anyres" or "anyres_max_N". If it is None, the image processor's configuration determines whether images
    are padded. ``patch_merge_type`` and ``rounds_sizes`` are fields of the `ImageLayout`.
    """

    model_type: Literal["llava", "llava_next", "llava_onevision", "vipllava"]
    text_config: TextConfig = Field(default_factory=TextConfig)
    vision_config: VisionConfig = Field(default_factory=lambda: VisionConfig.model_validate(CLIP_L_336))
    image_token_id: TokenId = Field(default=32000, alias="image_token_index")
    projector_hidden_act: Activation = "gelu"
    projector_depth: int = Field(default=2, ge=0, le=64)  # number of linear layers; 0 means identity
    multimodal_projector_bias: bool = True
    projector_layernorm_eps: Factor | None = None  # None: no norm before the first linear layer
    vision_feature_layer: (
        LayerIndex | Annotated[tuple[LayerIndex, ...], Field(min_length=1, max_length=MAX_FEATURE_LAYERS)]
    ) = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    tie_word_embeddings: bool = False
    image_aspect_ratio: str | None = None
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = Field(
        default=None, max_length=_MAX_GRID
    )  # (height, width) in pixels
    patch_merge_type: Merge = "spatial_unpad"
    rounds_sizes: bool = True
    mm_use_im_start_end: bool = False
    vision_tower_name: str | None = (
        None  # only in the original layout, where the checkpoint might not contain the tower
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add the defaults for the model type, and convert the names of transformers."""
        values = {key: value for key, value in values.items() if value is not None}
        for name, alias in _ALIASES.items():
            if alias in values:
                values.setdefault(name, values.pop(alias))
        kind = str(values.get("model_type"))
        values = _MODEL_DEFAULTS.get(kind, {}) | values
        for part, part_type in _PART_TYPES.get(kind, {}).items():
            if isinstance(values[part], dict):
                values[part] = {"model_type": part_type} | values[part]
        if kind in _TILED:  # in transformers, the model type determines whether images are split into tiles
            values["image_aspect_ratio"] = values.get("vision_aspect_ratio", "anyres")
        return values

    def shard(self, num_ranks: int) -> ModelConfig:
        """Return the configuration of one rank. Raises ValueError if the decoder cannot be sharded."""
        return self.model_copy(update={"text_config": self.text_config.shard(num_ranks)})

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        num_layers = self.vision_config.num_hidden_layers
        for layer in self._feature_layers:
            if not -num_layers - 1 <= layer <= num_layers:
                raise ValueError(
                    f"vision_feature_layer {layer} is out of range; the vision tower has {num_layers} layers."
                )
        if not self.projector_depth and self.feature_size != self.text_config.hidden_size:
            raise ValueError(
                f"The model has no projector, but its feature size {self.feature_size} differs from the "
                f"decoder's hidden size {self.text_config.hidden_size}."
            )
        layout = self.image_layout()  # raises ValueError for an unsupported grid
        if self.model_type == "llava_onevision" and layout.max_tiles is None:
            raise ValueError(
                f"vision_aspect_ratio is {self.image_aspect_ratio!r:.80}; the supported value is "
                "anyres_max_<tiles>, for example anyres_max_9."
            )
        return self

    @property
    def is_tied(self) -> bool:
        """Whether the LM head and the embedding table share one weight."""
        return self.tie_word_embeddings or self.text_config.tie_word_embeddings

    @property
    def _feature_layers(self) -> tuple[int, ...]:
        layers = self.vision_feature_layer
        return (layers,) if isinstance(layers, int) else layers

    @property
    def feature_layers(self) -> list[int]:
        """The indices of the hidden states that the projector reads. Index 0 is the first layer's input."""
        return [layer % (self.vision_config.num_hidden_layers + 1) for layer in self._feature_layers]

    @property
    def feature_size(self) -> int:
        """The projector's input width: the size of the concatenated hidden states."""
        return self.vision_config.hidden_size * len(self._feature_layers)

    @property
    def drops_first_feature(self) -> bool:
        """Whether the first position in the tower's output, usually the class token, is dropped."""
        return self.vision_feature_select_strategy == "default"

    @property
    def tokens_per_tile(self) -> int:
        return self.vision_config.num_positions - self.drops_first_feature

    @property
    def has_image_newline(self) -> bool:
        """Whether each row of patches is followed by a learned newline embedding."""
        return self.image_layout().has_newlines

    def image_layout(self, fit: OneTileFit = "pad") -> ImageLayout:
        """Return the image layout. ``fit`` is used only if config.json does not specify a method."""
        aspect_ratio, side = self.image_aspect_ratio or "", self.vision_config.image_size
        return ImageLayout(
            side,
            self.tokens_per_tile,
            fit=self._fit(fit),
            grid=self._grid(side),
            merge=self.patch_merge_type,
            max_tiles=max_tiles_of(aspect_ratio),
            rounds_sizes=self.rounds_sizes,
        )

    def _fit(self, default: OneTileFit) -> Fit:
        if self.image_aspect_ratio is None:
            return default
        if self.image_aspect_ratio == "hd":
            return "hd"
        if self.image_aspect_ratio.startswith("anyres"):
            return "anyres"
        if self.image_aspect_ratio == "pad":
            return "pad"
        # The original code uses the tower's image processor. For CLIP, it crops images to their center;
        # for SigLIP, it squashes them.
        return "crop" if self.vision_config.has_class_token else "squash"

    def _grid(self, side: int) -> tuple[Resolution, ...]:
        if self.image_aspect_ratio == "hd":
            return tuple((columns * side, rows * side) for columns, rows in HD_SHAPES)
        if not (self.image_aspect_ratio or "").startswith("anyres"):
            return ()
        return tuple((width, height) for height, width in self.image_grid_pinpoints or ())


class ImageSize(ConfigPart):
    """The image processor's target size in pixels. A side is None if it is not specified in the file."""

    height: ImageSide | None = None
    width: ImageSide | None = None


class ImageConfig(ConfigPart):
    """Configuration of the image processor.

    ``do_pad`` is None if it is not specified in the file, as in the checkpoints published by llava-hf.
    """

    image_mean: tuple[Proportion, Proportion, Proportion] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[Factor, Factor, Factor] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: Factor = 1 / 255
    do_pad: bool | None = None
    size: ImageSize | ImageSide | None = None  # an int is the length of the shortest edge

    @property
    def fit(self) -> OneTileFit:
        """How to make images square if config.json does not specify a method.

        The default is padding: LLaVA-1.5 was trained on padded images, although its image processor
        configuration does not say so. If the file specifies both a height and a width, the tower is SigLIP or
        similar, and images are squashed to this size.
        """
        if self.do_pad:
            return "pad"
        if isinstance(self.size, ImageSize) and self.size.height and self.size.width:
            return "squash"
        return "crop" if self.do_pad is False else "pad"


def find_vision_tower(folder: Path) -> Path | None:
    """Return the local folder that ``mm_vision_tower`` in config.json names, or None if there is none.

    The name is an absolute path or a path relative to ``folder``. Usually, it is a Hub ID instead. Only
    checkpoints in the original layout have this key. Raises CheckpointError if config.json is invalid.
    """
    name = read_json_object(folder / "config.json").get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return None
    try:
        tower = (folder / name).resolve()
        is_tower = tower != folder.resolve() and (tower / "config.json").is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte or a cycle of links
        return None
    return tower if is_tower else None


def read_config(folder: Path, vision_tower: Path | None = None) -> ModelConfig:
    """Read the configuration of a model.

    ``vision_tower`` is a folder that contains the vision tower. It may be required for checkpoints in the
    original layout. Raises CheckpointError if config.json is missing or the model is not supported.
    """
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist. {folder} is not a model folder.")
    values = read_json_object(path)
    require_model_type(values, path)
    tower = None if vision_tower is None else read_json_object(vision_tower / "config.json")
    if vision_tower is not None and not tower:
        missing = vision_tower / "config.json"
        raise CheckpointError(
            f"{missing} does not exist. Set vision_tower to a folder that contains a vision tower."
        )
    try:
        if is_original(values):
            values = to_hf_config(values, tower)
        elif is_tinyllava(values):
            values = from_tinyllava_config(values)
        return ModelConfig.model_validate(values)
    except ValueError as error:
        reason = describe_problems(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} does not describe a supported LLaVA model. {reason}") from error


def read_image_config(
    folder: Path, vision_tower: Path | None = None, *, vision: VisionConfig | None = None
) -> ImageConfig:
    """Read the image processor's configuration from preprocessor_config.json or processor_config.json.

    For checkpoints in the original layout, the file is in the ``vision_tower`` folder. If there is no file,
    return the defaults for the type of vision tower in ``vision``. Raises CheckpointError if the
    configuration is invalid.
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
        reason = describe_problems(error)
        raise CheckpointError(
            f"The image processor's configuration in {folder} is invalid. {reason}"
        ) from error


def read_eos_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """Return the end-of-sequence token IDs from generation_config.json, or else from the decoder's config."""
    path = folder / "generation_config.json"
    eos = read_json_object(path).get("eos_token_id")
    if eos is None:
        eos = config.text_config.eos_token_id
    try:
        token_ids = TOKEN_IDS.validate_python(eos)
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is invalid. eos_token_id must be a token ID or a list of up to {MAX_TOKENS} token IDs."
        ) from error
    return frozenset([token_ids] if isinstance(token_ids, int) else token_ids)


def _image_processor(folder: Path) -> dict[str, Any]:
    values = read_json_object(folder / "preprocessor_config.json")
    if not values:
        path = folder / "processor_config.json"
        values = read_json_object(path).get("image_processor", {})
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is invalid. image_processor must be an object.")
    return values


def describe_problems(error: ValidationError) -> str:
    """Return one sentence per problem. If a problem concerns a field, the field's path comes first."""
    problems = []
    for item in error.errors():
        field, message = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
        if item["type"] == "literal_error":
            supported = item["ctx"]["expected"]
            problems.append(f"{field} is {item['input']!r:.80}; supported values are {supported}.")
            continue
        problems.append((f"{field}: {message}" if field else message).removesuffix(".") + ".")
    return " ".join(problems)
