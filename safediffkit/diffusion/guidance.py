"""Guidances: functions that take a noise model and hand back one that leans somewhere."""

from collections.abc import Callable

import torch
from torch import Tensor

from safediffkit.diffusion.denoise import NoiseModel, predict_clean
from safediffkit.diffusion.schedule import NoiseLevel

Guidance = Callable[[NoiseModel], NoiseModel]


def guide(noise_model: NoiseModel, *guidances: Guidance) -> NoiseModel:
    """Apply guidances in the order given: the last one has the last word."""
    for guidance in guidances:
        noise_model = guidance(noise_model)
    return noise_model


def classifier_free(weight: float) -> Guidance:
    """Lean towards the condition: noise(none) + weight (noise(y) - noise(none)).

    Weight 1 follows y as learned, 0 ignores it, more than 1 exaggerates it. "None" is the condition with every entry
    NaN. This does not sample p(x) p(y | x)^weight, except where both have the same spread.
    [Ho & Salimans 2022 Eq. 6, whose weight is this one less 1]
    """

    def guidance(noise_model: NoiseModel) -> NoiseModel:
        def guided(x: Tensor, level: NoiseLevel, condition: Tensor | None, /) -> Tensor:
            if condition is None or weight == 1:
                return noise_model(x, level, condition)
            none = torch.full_like(condition, torch.nan)
            if weight == 0:
                return noise_model(x, level, none)
            # one call for both: a network is faster on one batch of twice the size
            alpha, sigma = level.alpha, level.sigma
            twice = NoiseLevel(torch.cat([alpha, alpha]), torch.cat([sigma, sigma])) if alpha.ndim else level
            rows = len(x), *condition.shape[1:]
            both = noise_model(torch.cat([x, x]), twice, torch.cat([none.expand(rows), condition.expand(rows)]))
            ignoring, following = both.chunk(2)
            return ignoring + weight * (following - ignoring)

        return guided

    return guidance


def classifier(log_prob: Callable[[Tensor, NoiseLevel], Tensor], weight: float = 1.0) -> Guidance:
    """Follow the gradient of a log-probability: noise - weight sigma grad_x log_prob(x, level).

    `log_prob` gives one value per row of noisy x; an energy, which is a log-probability up to a constant, does too.
    Works inside `torch.no_grad()`; outside it, gradients also flow through the guidance. [Dhariwal & Nichol Alg. 2]
    """

    def guidance(noise_model: NoiseModel) -> NoiseModel:
        def guided(x: Tensor, level: NoiseLevel, condition: Tensor | None, /) -> Tensor:
            wanted = torch.is_grad_enabled()
            with torch.enable_grad():
                probe = x if wanted and x.requires_grad else x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(log_prob(probe, level).sum(), probe, create_graph=wanted)
            return noise_model(x, level, condition) - weight * level.like(x).sigma * slope

        return guided

    return guidance


def clip_clean(low: float | Tensor, high: float | Tensor) -> Guidance:
    """Keep the implied clean x within its box, such as actions in [-1, 1]. [DDPM's public code]"""

    def guidance(noise_model: NoiseModel) -> NoiseModel:
        def guided(x: Tensor, level: NoiseLevel, condition: Tensor | None, /) -> Tensor:
            clean = predict_clean(x, noise_model(x, level, condition), level)
            level = level.like(x)
            boxed = clean.clamp(torch.as_tensor(low).to(x), torch.as_tensor(high).to(x))
            return (x - level.alpha * boxed) / level.sigma

        return guided

    return guidance
