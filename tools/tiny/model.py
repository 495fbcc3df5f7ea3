"""The tiny LLaVA as a training module: CLIP tower, two-layer GELU projector and Llama decoder.

Parameter names are those of the llava-hf checkpoint, so the state dict can be exported directly. The module
only supports training, so it has no KV cache and cannot generate text. It omits the tower's last layer,
because LLaVA uses the output of layer -2. `export` adds the missing layer to the checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.drawing import IMAGE_SIZE, LABELS
from tiny.tokenizer import IMAGE, SIZE
from tiny.tower import VISION, Clip, Shape, initialize_neighbor_attention, split_heads

__all__ = ["TEXT", "TinyLlava", "block_mask"]


TEXT = Shape(width=256, layers=5, heads=4, inner=704)
_EPS = 1e-5
_TAUGHT_LABELS = (
    "region",
    "character",
    "place_in_text",
)  # the decoder learns the other labels on its own
_THETA = 10_000.0


class _Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:  # the fused kernel requires a weight of the same type as x
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = TEXT.width
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = split_heads(F.linear(x, weight), TEXT.heads)
        q, k = _rotate(qkv[:2], *rotation)
        out: Tensor = self.o_proj(_mix(q, k, qkv[2], mask).transpose(1, 2).flatten(2))
        return out


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute attention step by step. On a CPU, this is three times as fast as the fused masked kernel."""
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
        return torch.softmax(scores, -1) @ v


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Apply Llama's rotary position embeddings to `x`, [2, rows, heads, tokens, head width]."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(TEXT.width, TEXT.inner, bias=False)
        self.up_proj = nn.Linear(TEXT.width, TEXT.inner, bias=False)
        self.down_proj = nn.Linear(TEXT.inner, TEXT.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = _Norm(TEXT.width, _EPS)
        self.self_attn = _Attention()
        self.post_attention_layernorm = _Norm(TEXT.width, _EPS)
        self.mlp = _Mlp()

    def attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        out: Tensor = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SIZE, TEXT.width)
        self.layers = nn.ModuleList(_Layer() for _ in range(TEXT.layers))
        self.norm = _Norm(TEXT.width, _EPS)


def block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:  # [rows, tokens] -> [rows, 1, tokens, tokens]
    """Return the additive attention mask.

    Each token attends to itself and to earlier tokens in its segment. Tokens in segments above 1 also attend
    to the prefix with the image.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    sees = ((query == key) | ((key == 1) & (query > 1))).tril()
    return torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -1e4)[:, None]


class _Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model = Clip()


class _Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION.width, TEXT.width)
        self.linear_2 = nn.Linear(TEXT.width, TEXT.width)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.gelu(self.linear_1(features)))
        return out


class _LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _Llama()
        self.lm_head = nn.Linear(TEXT.width, SIZE, bias=False)


class TinyLlava(nn.Module):
    """The trainable model: image features, patch labels for the tower, and logits for packed rows."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = _Tower()
        self.multi_modal_projector = _Projector()
        self.language_model = _LanguageModel()
        # Classifies the patches to train the tower. It is not exported.
        self.teacher = nn.Sequential(
            nn.LayerNorm(VISION.width), nn.Linear(VISION.width, sum(LABELS.values()))
        )
        self.apply(_initialize)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                nn.init.zeros_(weight)
        initialize_neighbor_attention(self.vision_tower.vision_model)

    def features(self, pixels: Tensor) -> Tensor:  # [images, 3, side, side] -> [images, patches, width]
        assert pixels.shape[-1] == IMAGE_SIZE
        out: Tensor = self.vision_tower.vision_model(pixels)
        return out

    def label_loss(self, features: Tensor, labels: Tensor) -> Tensor:  # labels: [images, kinds, patches]
        logits = self.teacher(features).float().split(list(LABELS.values()), -1)
        losses = []
        for number, one in enumerate(logits):
            truth = labels[:, number].flatten()
            weight = torch.where(truth > 0, 1.0, 0.1)  # most patches are empty
            each = F.cross_entropy(one.flatten(0, 1), truth, reduction="none")
            losses.append((each * weight).sum() / weight.sum())
        return torch.stack(losses)

    @torch.no_grad()
    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the accuracy for each kind of label, measured only on patches to which the label applies."""
        predictions = [one.argmax(-1) for one in self.teacher(features).split(list(LABELS.values()), -1)]
        shown = [labels[:, number] > 0 for number in range(len(LABELS))]
        hits = [
            (prediction == labels[:, number])[shown[number]] for number, prediction in enumerate(predictions)
        ]
        return {name: round(hit.float().mean().item(), 3) for name, hit in zip(LABELS, hits, strict=True)}

    @torch.no_grad()
    def add_teacher_units(self, features: Tensor) -> None:
        """Replace the least important units in the projector with units for the teacher's classes.

        Each unit is active where the teacher predicts its class. The teacher's layer norm is approximated by
        a constant scale. With these units, the decoder learns regions and characters in minutes instead of
        hours.
        """
        norm, line = self.teacher[0], self.teacher[1]
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(line, nn.Linear)
        first, second = self.multi_modal_projector.linear_1, self.multi_modal_projector.linear_2
        unused = (F.gelu(first(features)).flatten(0, 1).std(0) * second.weight.norm(dim=0)).argsort()
        scale = features.std(-1).median()
        start, taken = 0, 0
        for name, size in LABELS.items():
            weight, bias = line.weight[start : start + size], line.bias[start : start + size]
            start += size
            if name not in _TAUGHT_LABELS:
                continue
            bias = bias + weight @ norm.bias
            weight = weight * norm.weight / scale
            weight = weight - weight.mean(1, keepdim=True)  # because the layer norm subtracts the mean
            units = unused[taken : taken + size - 1]
            taken += size - 1
            first.weight[units] = 0.35 * (weight - weight.mean(0))[1:]
            first.bias[units] = 0.35 * (bias - bias.mean())[1:]
            second.weight[:, units] = torch.randn(TEXT.width, size - 1) * 0.5

    def project(self, features: Tensor) -> Tensor:
        out: Tensor = self.multi_modal_projector.linear_2(
            F.gelu(self.multi_modal_projector.linear_1(features))
        )
        return out

    def logits(
        self, ids: Tensor, positions: Tensor, segments: Tensor, targets: Tensor, images: Tensor
    ) -> Tensor:
        """Return the logits that predict each target token.

        `images` contains the image features of all rows, [images, patches, width].
        """
        llama = self.language_model.model
        x = llama.embed_tokens(ids).to(images.dtype)
        x = x.masked_scatter((ids == IMAGE)[..., None], images)
        rotation = _rotations(positions, x.dtype)
        mask = block_mask(segments, x.dtype)
        for number, layer in enumerate(llama.layers):
            assert isinstance(layer, _Layer)
            x = layer.attend(x, rotation, mask)
            if number == TEXT.layers - 1:  # only the target tokens are needed from here on
                x = x[F.pad(targets[:, 1:], (0, 1))]
            x = layer.feed_forward(x)
        out: Tensor = self.language_model.lm_head(llama.norm(x))
        return out


def _rotations(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = TEXT.width // TEXT.heads // 2
    speeds = _THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * speeds
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.04)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if module.num_embeddings < SIZE else 0.5)
