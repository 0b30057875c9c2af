"""The exercises of lesson 02."""

import torch
from torch import Tensor

from safediffkit.diffusion.schedule import NoiseLevel
from safediffkit.lessons import Exercise


def _level(alpha: float) -> NoiseLevel:
    return NoiseLevel(torch.tensor(alpha), torch.tensor((1 - alpha**2) ** 0.5))


_X, _NOISE = torch.tensor([[1.0, -0.5], [0.2, 2.0]]), torch.tensor([[0.3, 1.1], [-0.7, 0.4]])


def _noised(clean: Tensor, noise: Tensor, betas: Tensor) -> Tensor:
    kept = (1 - betas).prod()
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


noising = Exercise(
    _noised,
    trials=[(_X, _NOISE, torch.tensor(betas)) for betas in ([0.1, 0.2, 0.4], [0.05, 0.3])],
    slips={
        "no roots": (
            lambda clean, noise, betas: (1 - betas).prod() * clean + (1 - (1 - betas).prod()) * noise,
            "The two shares belong to variances, and they add up to 1 as they should. What is multiplied with the data "
            "and with the noise are their square roots.",
        ),
        "variance instead of standard deviation": (
            lambda clean, noise, betas: (1 - betas).prod().sqrt() * clean + (1 - (1 - betas).prod()) * noise,
            "The factor of the data is right. The noise is multiplied with its variance: take the square root.",
        ),
        "alpha and sigma swapped": (
            lambda clean, noise, betas: (1 - (1 - betas).prod()).sqrt() * clean + (1 - betas).prod().sqrt() * noise,
            "The two factors are swapped: after a few small betas, most of the data must still be there.",
        ),
        "only the last level": (
            lambda clean, noise, betas: (1 - betas[-1]).sqrt() * clean + betas[-1].sqrt() * noise,
            "That is the last level alone, as if it started from clean data. The signal passes through all levels: "
            "multiply what each of them keeps.",
        ),
        "added instead of multiplied": (
            lambda clean, noise, betas: (1 - betas.sum()).sqrt() * clean + betas.sum().sqrt() * noise,
            "You added the betas up. Each level keeps a share 1 - beta of what is *left*, so the shares multiply.",
        ),
        "data not scaled": (
            lambda clean, noise, betas: clean + (1 - (1 - betas).prod()).sqrt() * noise,
            "The noise is right, but the data must shrink by as much as the noise grows. Otherwise the sum gets wider "
            "and wider, and never turns into the noise that denoising starts from.",
        ),
    },
)

clean_estimate = Exercise(
    lambda x, noise, alpha, sigma: (x - sigma * noise) / alpha,
    trials=[(_X, _NOISE, torch.tensor(0.8), torch.tensor(0.6)), (_X, _NOISE, torch.tensor(0.28), torch.tensor(0.96))],
    slips={
        "sign flipped": (
            lambda x, noise, alpha, sigma: (x + sigma * noise) / alpha,
            "You put the noise in once more. It is to be taken out: minus.",
        ),
        "not scaled back": (
            lambda x, noise, alpha, sigma: x - sigma * noise,
            "The noise is out, but what is left is alpha times the clean data. Divide by alpha.",
        ),
        "alpha and sigma swapped": (
            lambda x, noise, alpha, sigma: (x - alpha * noise) / sigma,
            "That solves x = sigma clean + alpha noise. Alpha belongs to the clean data, sigma to the noise.",
        ),
        "variance instead of standard deviation": (
            lambda x, noise, alpha, sigma: (x - sigma**2 * noise) / alpha,
            "You took sigma² times the noise out, but sigma times the noise was put in.",
        ),
        "divided by alpha squared": (
            lambda x, noise, alpha, sigma: (x - sigma * noise) / alpha**2,
            "Alpha is already the root of SPI's alpha-bar: divide by it once, not twice.",
        ),
    },
)


def _step(x: Tensor, noise: Tensor, at: NoiseLevel, to: NoiseLevel) -> Tensor:
    return to.alpha / at.alpha * x - to.sigma * ((to.log_snr - at.log_snr).exp() - 1) * noise


def _h(at: NoiseLevel, to: NoiseLevel) -> Tensor:
    return to.log_snr - at.log_snr


solver_step = Exercise(
    _step,
    trials=[(_X, _NOISE, _level(0.3), _level(0.5)), (_X, _NOISE, _level(0.6), _level(0.9))],
    slips={
        "as printed": (
            lambda x, noise, at, to: to.alpha / at.alpha * x - at.sigma * ((-_h(at, to)).exp() - 1) * noise,
            "That is the formula as printed: h is positive, so its bracket is negative, and minus a negative number "
            "*adds* noise. Exchange start and end in the second factor.",
        ),
        "sign flipped": (
            lambda x, noise, at, to: to.alpha / at.alpha * x + to.sigma * (_h(at, to).exp() - 1) * noise,
            "The size is right, the sign is turned: noise is to be taken out, and the bracket is positive now.",
        ),
        "h of the wrong sign": (
            lambda x, noise, at, to: to.alpha / at.alpha * x - to.sigma * ((-_h(at, to)).exp() - 1) * noise,
            "The sigma is right, but e^(-h) stands where e^h belongs. On the way to clean data log(alpha / sigma) "
            "grows, so h = to.log_snr - at.log_snr is positive.",
        ),
        "sigma of the level we come from": (
            lambda x, noise, at, to: to.alpha / at.alpha * x - at.sigma * (_h(at, to).exp() - 1) * noise,
            "The bracket is right, but it takes out far too much: its sigma is that of the level we go *to*.",
        ),
        "alphas swapped": (
            lambda x, noise, at, to: at.alpha / to.alpha * x - to.sigma * (_h(at, to).exp() - 1) * noise,
            "The noise is right. The signal must grow from at.alpha to to.alpha, so it is to.alpha / at.alpha times x.",
        ),
        "the 1 forgotten": (
            lambda x, noise, at, to: to.alpha / at.alpha * x - to.sigma * _h(at, to).exp() * noise,
            "That takes out all of the noise. The -1 puts back what belongs to the level we go to: to.sigma of it.",
        ),
    },
)
