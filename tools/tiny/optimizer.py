"""The optimizer: Muon for the matrices of the transformer layers, AdamW for all other parameters."""

from collections import defaultdict

import torch
from torch import Tensor, nn

__all__ = ["Optimizer"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def _orthogonal(update: Tensor) -> Tensor:  # [matrices, rows, columns]
    """Approximate the nearest orthogonal matrix with five Newton-Schulz steps."""
    a, b, c = _COEFFICIENTS
    is_tall = update.shape[1] > update.shape[2]
    x = (update.transpose(1, 2) if is_tall else update).bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    out: Tensor = (x.transpose(1, 2) if is_tall else x).float()
    return out


class Optimizer:
    """Muon and AdamW with a common interface. `rate` (at most 1.0) scales both learning rates."""

    def __init__(self, model: nn.Module, *, matrix_rate: float = 0.02, other_rate: float = 1.5e-3) -> None:
        self._matrix_rate = matrix_rate
        self._matrices: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if ".layers." in name and parameter.ndim == 2:
                self._matrices[parameter.shape].append(parameter)
            else:
                others.append(parameter)
        self._momentum = {shape: torch.zeros(len(group), *shape) for shape, group in self._matrices.items()}
        self._adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self._other_rate = other_rate

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update all parameters that have a gradient."""
        for group in self._adam.param_groups:
            group["lr"] = self._other_rate * rate
        self._adam.step()
        for shape, parameters in self._matrices.items():
            used = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
            if not used:
                continue
            gradient = torch.stack([parameters[number].grad for number in used])  # type: ignore[misc]
            momentum = self._momentum[shape][used].mul_(0.95).add_(gradient, alpha=0.05)
            self._momentum[shape][used] = momentum
            update = _orthogonal(gradient.lerp(momentum, 0.95))
            stretch = max(1.0, shape[0] / shape[1]) ** 0.5
            for number, change in zip(used, update, strict=True):
                speed = self._matrix_rate * rate
                parameters[number].mul_(1 - 0.1 * speed).add_(change, alpha=-speed * stretch)

    def zero_grad(self) -> None:
        for parameters in [*self._matrices.values(), self._adam.param_groups[0]["params"]]:
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, object]:
        return {"adam": self._adam.state_dict(), "momentum": list(self._momentum.values())}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self._adam.load_state_dict(state["adam"])  # type: ignore[arg-type]
        for momentum, stored in zip(self._momentum.values(), state["momentum"], strict=True):  # type: ignore[call-overload]
            momentum.copy_(stored)
