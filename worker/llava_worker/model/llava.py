"""LLaVA: in the decoder's prompt, image tokens are replaced by projected features from a vision tower."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llava_worker.model.attention.base import AttentionPlan
from llava_worker.model.config.image_grid import ImagePlan
from llava_worker.model.config.model_config import ImageConfig, ModelConfig
from llava_worker.model.decoder import Decoder
from llava_worker.model.layers.activation import activation
from llava_worker.model.layers.linear import Linear, LinearShape, num_multiplications
from llava_worker.model.quantization.precision import Precision
from llava_worker.model.tensor_parallel import SINGLE_RANK, TensorParallel
from llava_worker.model.vision_tower import VisionTower

__all__ = ["Llava"]


class Llava(nn.Module):
    """A vision tower, a projector and a decoder. Weights are uninitialized until `load_weights` is called.

    The model runner calls `encode` and `assemble` for new images and `embed` for the token IDs. Next, it
    overwrites the embeddings of image tokens with image features. It then calls the model itself, and finally
    `logits` for the rows to sample from. With tensor parallelism, only the first rank uses this class, and
    ``config`` describes its shard. The other ranks hold only their shards of the decoder layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        image: ImageConfig,
        *,
        precision: Precision,
        device: torch.device,
        ranks: TensorParallel = SINGLE_RANK,
    ) -> None:
        super().__init__()
        self.config = config
        self.ranks = ranks
        self.dtype = precision.dtype
        self.device = device
        text = config.text_config
        self.vision_tower = VisionTower(
            config.vision_config, config.feature_layers, precision=precision, device=device
        )
        self.multi_modal_projector = _Projector(config, precision, device)
        self.language_model = Decoder(text, precision=precision, device=device, ranks=ranks)
        self.lm_head = self._make_lm_head(precision)
        if config.has_image_newline:
            newline = torch.empty(text.hidden_size, dtype=precision.dtype, device=device)
            self.image_newline = nn.Parameter(newline, requires_grad=False)
        # The divisions run on the CPU. On the meta device, which is used to measure the size of a model, a
        # division would make torch import its compiler.
        mean, std = torch.tensor(image.image_mean), torch.tensor(image.image_std)
        self._pixel_mean = (mean.view(3, 1, 1) / image.rescale_factor).to(device)
        self._pixel_std = (std.view(3, 1, 1) / image.rescale_factor).to(device)

    @property
    def encoder_cost(self) -> float:
        """The cost of encoding an image, per feature vector, relative to computing a token in the decoder.

        The costs are the numbers of multiplications in linear layers.
        """
        config = self.config
        num_positions = config.tokens_per_tile + config.drops_first_feature
        tower = num_positions * num_multiplications(self.vision_tower)
        projector = config.tokens_per_tile * num_multiplications(self.multi_modal_projector)
        decoder = config.tokens_per_tile * num_multiplications(self.language_model)
        return (tower + projector) / decoder

    def _make_lm_head(self, precision: Precision) -> Linear:
        text = self.config.text_config
        shape = LinearShape.plain(text.hidden_size, text.vocab_size, has_bias=text.has_lm_head_bias)
        if not self.config.is_tied:
            return precision.linear(shape, self.device, "lm_head")
        lm_head = precision.dense_linear(shape, self.device)
        lm_head.weight = self.language_model.embed_tokens.weight
        return lm_head

    def encode(self, tiles: Tensor) -> Tensor:
        """Encode tiles, uint8 [tiles, side, side, 3], as embeddings [tiles, tokens_per_tile, hidden]."""
        pixels = (tiles.permute(0, 3, 1, 2).float() - self._pixel_mean) / self._pixel_std
        features = self.vision_tower(pixels.to(self.dtype))  # [tiles, positions, feature_size]
        if self.config.drops_first_feature:
            features = features[:, 1:]
        return self.multi_modal_projector(features)

    def assemble(self, features: Tensor, plan: ImagePlan) -> Tensor:
        """Arrange an image's features, [tiles, tokens_per_tile, hidden], in prompt order, [tokens, hidden].

        Without a grid, the result contains the features tile by tile. With a grid, the base view comes first,
        followed by the encoded part of the grid row by row. See `ImagePlan`.
        """
        if not plan.rows:
            newline = [self.image_newline[None]] if plan.has_newlines else []
            return torch.cat([features.flatten(0, 1), *newline])
        size = features.shape[-1]
        side = math.isqrt(features.shape[1])  # patches
        tiles = features[1:].view(plan.rows, plan.columns, side, side, size)
        grid = tiles.transpose(1, 2).reshape(plan.rows * side, plan.columns * side, size)
        rows = grid[plan.top : plan.bottom, plan.left : plan.right]
        if plan.reduced is not None:
            channels = rows.permute(2, 0, 1)[None]  # [1, hidden, rows, columns]
            rows = functional.interpolate(channels, plan.reduced, mode="bilinear")[0].permute(1, 2, 0)
        if plan.has_newlines:
            rows = torch.cat([rows, self.image_newline.expand(len(rows), 1, size)], dim=1)
        return torch.cat([features[0], rows.flatten(0, 1)])

    def embed(self, token_ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        return self.language_model.embed(token_ids)

    def __call__(self, x: Tensor, positions: Tensor, attention: AttentionPlan) -> Tensor:
        """Return the hidden states [tokens, hidden] for x [tokens, hidden] and positions [tokens]."""
        return self.language_model(x, positions, attention)

    def logits(self, hidden: Tensor) -> Tensor:  # [rows, hidden] -> fp32 [rows, vocab]
        return self.lm_head(hidden).float()


class _Projector(nn.Module):
    """Maps features of the vision tower to the decoder's width: linear layers with activations in between.

    LLaVA-1.5 uses two layers ("mlp2x_gelu") and LLaVA-v1 uses one ("linear"). If the type is "identity",
    there are no layers. The layers are named linear_1, linear_2, ... In VipLlava, a norm precedes them.
    """

    def __init__(self, config: ModelConfig, precision: Precision, device: torch.device) -> None:
        super().__init__()
        width, size = config.feature_size, config.text_config.hidden_size
        self.projector_layernorm: nn.LayerNorm | None = None
        if config.projector_layernorm_eps is not None:
            self.projector_layernorm = nn.LayerNorm(
                width, config.projector_layernorm_eps, dtype=precision.dtype, device=device
            )
        for number in range(1, config.projector_depth + 1):
            shape = LinearShape.plain(width, size, has_bias=config.multimodal_projector_bias)
            self.add_module(f"linear_{number}", precision.linear(shape, device, "projector"))
            width = size
        self._activation = activation(config.projector_hidden_act, precision.kernels)

    def __call__(
        self, features: Tensor
    ) -> Tensor:  # [tiles, tokens, feature_size] -> [tiles, tokens, hidden]
        if self.projector_layernorm is not None:
            features = self.projector_layernorm(features)
        linears = (module for module in self.children() if isinstance(module, Linear))
        for index, linear in enumerate(linears):
            features = linear(self._activation(features) if index else features)
        return features
