"""The tiny LLaVA as a training module: CLIP tower, two-layer GELU projector, Llama decoder.

Parameter names are those of the llava-hf checkpoint, so a checkpoint is a plain state dict. Only what
training needs is here: no cache and no generation, and not the tower's last layer, whose output LLaVA
never looks at (it takes layer -2); `folder` adds that layer when it writes the checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.drawing import IMAGE_SIZE, LABELS
from tiny.tokenizer import IMAGE, SIZE
from tiny.tower import VISION, Clip, Shape, look_at_neighbours, split_heads

__all__ = ["TEXT", "TinyLlava", "block_mask"]


TEXT = Shape(width=256, layers=5, heads=4, inner=704)
_EPS = 1e-5
_HINTS = ("region", "character", "place_in_text")  # shape, colour and rank are found without
_THETA = 10_000.0


class _Norm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:  # the fused kernel wants the weight in the input's type
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

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = split_heads(F.linear(x, weight), TEXT.heads)
        q, k = _rotate(qkv[:2], *turn)
        out: Tensor = self.o_proj(_mix(q, k, qkv[2], mask).transpose(1, 2).flatten(2))
        return out


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention in three plain steps: on a CPU three times as fast as the fused kernel with a mask."""
    with torch.autocast("cpu", enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
        return torch.softmax(scores, -1) @ v


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Llama's rotary positions; `x` is [2, rows, heads, tokens, head width]."""
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

    def attend(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        out: Tensor = x + self.self_attn(self.input_layernorm(x), turn, mask)
        return out

    def think(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(SIZE, TEXT.width)
        self.layers = nn.ModuleList(_Layer() for _ in range(TEXT.layers))
        self.norm = _Norm(TEXT.width, _EPS)


def block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:  # [rows, tokens] -> [rows, 1, tokens, tokens]
    """Each token sees those before it in its own segment and, if it is about a picture, the prefix."""
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
    """Features of pictures, patch labels from features, and the loss over packed rows."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = _Tower()
        self.multi_modal_projector = _Projector()
        self.language_model = _LanguageModel()
        # Thrown away at the end: what each patch shows, as a second teacher of the tower.
        self.teacher = nn.Sequential(
            nn.LayerNorm(VISION.width), nn.Linear(VISION.width, sum(LABELS.values()))
        )
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight", "fc2.weight")):
                nn.init.zeros_(weight)
        look_at_neighbours(self.vision_tower.vision_model)

    def features(self, pixels: Tensor) -> Tensor:  # [pictures, 3, side, side] -> [pictures, patches, width]
        assert pixels.shape[-1] == IMAGE_SIZE
        out: Tensor = self.vision_tower.vision_model(pixels)
        return out

    def label_loss(self, features: Tensor, labels: Tensor) -> Tensor:  # labels: [pictures, kinds, patches]
        logits = self.teacher(features).float().split(list(LABELS.values()), -1)
        losses = []
        for number, one in enumerate(logits):
            truth = labels[:, number].flatten()
            weight = torch.where(truth > 0, 1.0, 0.1)  # most patches show nothing
            each = F.cross_entropy(one.flatten(0, 1), truth, reduction="none")
            losses.append((each * weight).sum() / weight.sum())
        return torch.stack(losses)

    @torch.no_grad()
    def label_accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Per kind of label, how many of the patches that show something are named rightly."""
        guesses = [one.argmax(-1) for one in self.teacher(features).split(list(LABELS.values()), -1)]
        shown = [labels[:, number] > 0 for number in range(len(LABELS))]
        hits = [(guess == labels[:, number])[shown[number]] for number, guess in enumerate(guesses)]
        return {name: round(hit.float().mean().item(), 3) for name, hit in zip(LABELS, hits, strict=True)}

    @torch.no_grad()
    def hint(self, features: Tensor) -> None:
        """Give the projector units for what the teacher knows, in place of those that matter least.

        A unit fires where the teacher sees its class (its layer norm is taken as a constant scale, which
        it nearly is). The decoder finds regions and characters in minutes instead of hours that way.
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
            if name not in _HINTS:
                continue
            bias = bias + weight @ norm.bias
            weight = weight * norm.weight / scale
            weight = weight - weight.mean(1, keepdim=True)  # the layer norm's own centring
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
        """Logits of the tokens before each target; `images` is [pictures of all rows, patches, width]."""
        llama = self.language_model.model
        x = llama.embed_tokens(ids).to(images.dtype)
        x = x.masked_scatter((ids == IMAGE)[..., None], images)
        turn = _turns(positions, x.dtype)
        mask = block_mask(segments, x.dtype)
        for number, layer in enumerate(llama.layers):
            assert isinstance(layer, _Layer)
            x = layer.attend(x, turn, mask)
            if number == TEXT.layers - 1:  # from here on tokens stand alone, and only these are asked for
                x = x[F.pad(targets[:, 1:], (0, 1))]
            x = layer.think(x)
        out: Tensor = self.language_model.lm_head(llama.norm(x))
        return out


def _turns(positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = TEXT.width // TEXT.heads // 2
    speeds = _THETA ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None, :, None].float() * speeds
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.04)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 if module.num_embeddings < SIZE else 0.5)
