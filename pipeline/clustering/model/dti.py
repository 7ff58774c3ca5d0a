"""Deep Transformation-Invariant clustering: the Gaussian mixture (Algorithm 1) and K-means (equation 4).

A dense implementation lets autograd record every prototype transformed onto every image. Here a step takes two passes
instead. The first scores all pairs without gradients; from the scores come the responsibilities, which
Algorithm 1 treats as constants in the M-step anyway. The second repeats, with gradients, only the pairs that carry
responsibility: in thousands of dimensions that is about one per image. Both passes together give the gradients of
the dense computation for a fraction of its time and memory. Colours are fitted to each pair in closed form; since they
minimise the loss of their pair, its other gradients are those with constant colours.

Shapes: B images, K prototypes, P pairs of both, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.clustering.model.color import (
    Moments,
    Powers,
    distance,
    fit_color,
    gain_and_bias,
    pair_moments,
    penalty,
    recolor,
    remove_color,
    still_moments,
)
from pipeline.clustering.model.method import Assignment, StepOutput
from pipeline.clustering.model.predictor import PrototypeHeads, build_encoder
from pipeline.clustering.model.transforms import TransformSequence, every
from pipeline.clustering.workers import sum_over_workers
from pipeline.config import ClusteringConfig

NEGLIGIBLE = 1e-6
"""Responsibility at or below which a pair is left out of the M-step."""
CONVOLVED_MULTIPLE = 32
"""Where pictures are convolved, the number of pairs in the M-step is padded to a multiple of this."""
SURVIVORS = 3
"""Number of prototypes per image that are scored on all pixels, after screening has ruled out the others."""
SMALLEST_SCREEN_PX = 16
"""Minimum number of pixels along each side that screening uses; smaller images are scored on all pixels."""
CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Size of the transformed prototypes that a pass holds at once: it fits a CPU's caches, and keeps a GPU busy."""


class DTI(nn.Module):
    """Prototypes, and networks that align each of them to an image. Subclasses define the score of a pair.

    The canvas of a prototype holds everything that is transformed with it: its pixels, and further maps if any.

    Args:
        config: transformation names, encoder, precision.
        initial_KCHW: initial prototypes, float in [0, 1].
        device_type: type of the device of training, ``cpu`` or ``cuda``; it decides the precision ``auto``.
    """

    def __init__(self, config: ClusteringConfig, initial_KCHW: Tensor, device_type: str = "cpu") -> None:
        super().__init__()
        self.k, *shape = initial_KCHW.shape
        self.image_shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.prototypes = nn.Parameter(initial_KCHW.clone())
        self.module_names = list(config.transforms)
        self.fits_color = "color" in config.transforms
        self.sequence = TransformSequence(
            config.predicted,
            *self.image_shape,
            tps_grid=config.tps_grid,
            morphology_kernel=config.morphology_kernel,
            padding=config.padding,
        )
        self.register_buffer(
            "pixel_weights_HW", gaussian_weights(*self.image_shape[1:], config.loss_weight_std), persistent=False
        )
        self.predicted_modules = 0
        """Number of modules of the sequence that the curriculum has switched on."""
        self.learns_variances = False
        """Whether each pixel of a prototype has a variance of its own, where the method has variances."""
        self.encoder: nn.Module | None = None
        self.heads = nn.ModuleDict()
        if config.predicted:
            self._build_predictors(config)
        self.min_variance = config.min_std**2
        self.screen_stride = config.screen_stride
        self.encode_in_bfloat16 = _use_bfloat16(config.precision, device_type)

    pixel_weights_HW: Tensor | None
    """Weight of each pixel in a score; None if all weights are 1."""

    # -- scores of pairs ------------------------------------------------------------------------------------------

    @abstractmethod
    def canvas(self) -> Tensor:
        """Return the canvases (K, C', H, W) of all prototypes; the first C channels are the pixels."""

    @property
    @abstractmethod
    def constant_precision(self) -> float:
        """Factor on squared differences in twice the negative score, until variances are learned."""

    @abstractmethod
    def precision(self, canvas: Tensor) -> Tensor | None:
        """Return factors (..., C, H, W) on squared differences; None where all are `constant_precision`."""

    @abstractmethod
    def pair_scores(
        self, canvas: Tensor, images: Tensor, weights: Tensor | None, color: Tensor | None = None
    ) -> Tensor:
        """Return the scores (...) of transformed canvases (..., C', H, W) on images (..., C, H, W); higher is better.

        `weights` (H, W) are the weights of the pixels; None if all are 1. `color` (..., 2 C), which has no gradients,
        recolours the pictures.
        """

    @abstractmethod
    def scores_of_distances(self, distances: Tensor, log_precision: Tensor | float) -> Tensor:
        """Return scores (...) from squared differences that are weighted by precision and summed.

        `log_precision` is the sum of the logarithms of learned precisions, and 0 where none are learned.
        """

    @abstractmethod
    def log_prior(self) -> Tensor:
        """Return the log prior (K,) that is added to the scores of each prototype."""

    @abstractmethod
    def set_shares(self, shares_K: Tensor) -> None:
        """Make `shares_K` the mixing proportions, where the method has any (M-step of Algorithm 1)."""

    @abstractmethod
    def responsibilities(self, scores_BK: Tensor) -> Tensor:
        """Return the responsibility (B, K) of each prototype for each image, from scores with prior (E-step)."""

    @abstractmethod
    def losses(self, scores_BK: Tensor) -> Tensor:
        """Return the loss (B,) of each image, from scores with prior."""

    # -- the interface ClusteringMethod ---------------------------------------------------------------------------

    def forward(self, images_BCHW: Tensor) -> StepOutput:
        """Return the training loss of a batch, as `loss` does; DDP requires the name `forward`."""
        parameters = self.predict(images_BCHW)
        canvas, log_prior = self.canvas(), self.log_prior()
        with torch.no_grad():
            scores_BK = self._training_scores(canvas, images_BCHW, parameters, log_prior)
            gamma_BK = self.responsibilities(scores_BK)
            b_P, k_P, gamma_P = _pairs(gamma_BK, CONVOLVED_MULTIPLE if self.sequence.convolves(parameters) else 1)
        pairs = {name: beta[b_P, k_P] for name, beta in parameters.items()}
        expected, color_P = self._expected_score(canvas, images_BCHW, pairs, b_P, k_P, gamma_P)
        expected = expected + (gamma_BK * log_prior).sum()
        assigned = self._assignment(scores_BK, parameters)
        if color_P is not None:
            chosen = k_P == assigned.cluster_B[b_P]
            color_B = color_P.new_zeros(len(images_BCHW), color_P.shape[1])
            color_B[b_P[chosen]] = color_P[chosen]
            assigned = self._with_color(assigned, color_B)
        return StepOutput(loss=-expected / len(images_BCHW), objective=assigned.loss_B.mean(), assigned=assigned)

    def loss(self, images_BCHW: Tensor) -> StepOutput:
        """Return the loss of one training step on a batch of float images in [0, 1] (M-step of Algorithm 1)."""
        output: StepOutput = self(images_BCHW)
        return output

    @torch.no_grad()
    def assign(self, images_BCHW: Tensor) -> Assignment:
        """Assign each image to the prototype with the largest posterior, which includes the mixing proportions."""
        predicted = self.predict(images_BCHW)
        canvas = self.canvas()
        scores_BK = self._all_scores(canvas, images_BCHW, predicted) + self.log_prior()
        assigned = self._assignment(scores_BK, predicted)
        if self.fits_color:
            parts = torch.arange(len(images_BCHW), device=images_BCHW.device).split(self._pairs_at_once(images_BCHW))
            colors = [
                self.fitted_color(
                    self._transformed(
                        canvas, assigned.cluster_B[b], {name: beta[b] for name, beta in assigned.parameters.items()}
                    ),
                    images_BCHW[b],
                )
                for b in parts
            ]
            assigned = self._with_color(assigned, torch.cat(colors))
        return assigned

    def prototypes_KCHW(self) -> Tensor:
        """Return the prototypes as images, clamped to [0, 1]."""
        return self.prototypes.detach().clamp(0, 1)

    def shares_K(self) -> Tensor:
        """Return the mixing proportions, which sum to 1."""
        return self.log_prior().detach().softmax(0)

    @torch.no_grad()
    def transform(self, cluster_B: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Return prototypes `cluster_B` transformed by `parameters` (B, C, H, W), clamped to [0, 1]."""
        pictures = self._transformed(self.canvas(), cluster_B, parameters)[:, : self.image_shape[0]]
        if "color" in parameters:
            pictures = recolor(pictures, parameters["color"])
        return pictures.clamp(0, 1)

    @torch.no_grad()
    def align_back(self, images_BCHW: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Return images aligned to their prototypes by the inverse transformation (B, C, H, W), clamped to [0, 1]."""
        if "color" in parameters:
            images_BCHW = remove_color(images_BCHW, parameters["color"])
        return self.sequence.invert(images_BCHW, parameters).clamp(0, 1)

    # -- hooks for training -------------------------------------------------------------------------------------

    def activate(self, predicted_modules: int, learn_variances: bool = False) -> None:
        """Use the first `predicted_modules` of the sequence; what is not used requires no gradients.

        Colours, which are fitted, are always used. With `learn_variances`, the pixels of a prototype have variances.
        """
        self.predicted_modules = predicted_modules
        self.learns_variances = learn_variances
        if self.encoder is not None:
            self.encoder.requires_grad_(predicted_modules > 0)
        for name, heads in self.heads.items():
            heads.requires_grad_(name in self.predicted_names)

    @property
    def predicted_names(self) -> list[str]:
        """Names of the predicted modules that the curriculum has switched on."""
        return self.sequence.names[: self.predicted_modules]

    @property
    def active_names(self) -> list[str]:
        """Names of the modules that are in use: color, and those that the curriculum has switched on."""
        used = {"color", *self.predicted_names}
        return [name for name in self.module_names if name in used]

    @torch.no_grad()
    def adopt_light(self, cluster_N: Tensor, color_N2C: Tensor) -> None:
        """Give every prototype the average light of its images, with their colours `color_N2C` fitted to it.

        Which light a prototype has is free where colours are fitted: this choice makes it look like its images. Its
        contrast becomes their root mean square, since contrasts of both signs could have an average of 0. All workers
        call this together, each with its own images.
        """
        gain, bias = gain_and_bias(color_N2C)
        sums = self.prototypes.new_zeros(self.k, 3 * self.image_shape[0] + 1)
        sums.index_add_(0, cluster_N, torch.cat([gain, gain.square(), bias, gain[:, :1] * 0 + 1], dim=1))
        sum_over_workers(sums)
        seen = sums[:, -1] > 0
        gain, squared, bias = (sums[seen, :-1] / sums[seen, -1:]).chunk(3, dim=1)
        contrast = torch.where(gain < -0.5 * squared.sqrt(), -1.0, 1.0) * squared.sqrt()
        mean = self.prototypes[seen].mean((2, 3))
        level = gain * mean + bias - contrast * mean
        self.prototypes[seen] = self.prototypes[seen] * contrast[..., None, None] + level[..., None, None]

    def prototype_parameters(self) -> list[nn.Parameter]:
        """Return all parameters that belong to a prototype; their dimension 0 is the prototype."""
        own = [p for name, p in self.named_parameters() if "." not in name]
        return own + list(self.heads.parameters())

    def network_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of encoder and predictors, to which weight decay applies."""
        return [p for name, p in self.named_parameters() if "." in name]

    def broken_part(self) -> str | None:
        """Name the part with a number that is not finite, such as ``prototypes``, ``encoder`` or a module's predictors.

        Return None if all numbers are finite.
        """
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                part, _, rest = name.partition(".")
                return f"the predictors of module {rest.split('.')[0]}" if part == "heads" else part
        return None

    # -- internals ------------------------------------------------------------------------------------------------

    def _build_predictors(self, config: ClusteringConfig) -> None:
        """Build the networks that `predict` uses."""
        encoder = build_encoder(config.encoder, *self.image_shape, config.encoder_px)
        self.encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, size in self.sequence.sizes.items():
            self.heads[name] = PrototypeHeads(self.k, encoder.features, size)

    def predict(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the parameters (B, K, p) of each active module, for all pairs."""
        if self.encoder is None or not self.predicted_modules:
            return {}
        dtype = torch.bfloat16 if self.encode_in_bfloat16 else images_BCHW.dtype
        with torch.autocast(images_BCHW.device.type, torch.bfloat16, enabled=self.encode_in_bfloat16):
            features_BF = self.encoder(images_BCHW.to(dtype, memory_format=torch.channels_last))
        features_BF = features_BF.to(images_BCHW.dtype)
        return {name: self.heads[name](features_BF) for name in self.predicted_names}

    def _assignment(self, scores_BK: Tensor, parameters: dict[str, Tensor]) -> Assignment:
        """Assign images by scores with prior; `parameters` (B, K, p) of all pairs were predicted."""
        best_B, cluster_B = scores_BK.max(1)
        second_B, runner_up_B = best_B, cluster_B
        if self.k > 1:  # between equal scores, topk may choose another one than max does
            second_B, runner_up_B = scores_BK.scatter(1, cluster_B[:, None], -torch.inf).max(1)
        rows = torch.arange(len(scores_BK), device=scores_BK.device)
        return Assignment(
            cluster_B=cluster_B,
            loss_B=self.losses(scores_BK),
            posterior_B=self.responsibilities(scores_BK)[rows, cluster_B],
            runner_up_B=runner_up_B,
            margin_B=best_B - second_B,
            parameters={name: beta[rows, cluster_B].detach() for name, beta in parameters.items()},
        )

    def _with_color(self, assigned: Assignment, color_B2C: Tensor) -> Assignment:
        """Return `assigned` with fitted colours among its parameters, in the configured order."""
        parameters = {**assigned.parameters, "color": color_B2C}
        return replace(assigned, parameters={name: parameters[name] for name in self.active_names})

    def _expected_score(
        self, canvas: Tensor, images_BCHW: Tensor, pairs: dict[str, Tensor], b_P: Tensor, k_P: Tensor, gamma_P: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sum over pairs of gamma times score, differentiable in `canvas` and `pairs`, and fitted colours.

        The gradients are computed here, for a limited number of pairs at a time, which limits the memory.
        """
        total = canvas.new_zeros(())
        canvas_gradient = torch.zeros_like(canvas)
        gradients = {name: torch.empty_like(beta) for name, beta in pairs.items()}
        colors = []
        rows = torch.arange(len(k_P), device=k_P.device)
        with torch.enable_grad():
            for part in rows.split(self._pairs_at_once(images_BCHW)):
                own = canvas.detach().index_select(0, k_P[part]).requires_grad_()
                beta = {name: value.detach()[part].requires_grad_() for name, value in pairs.items()}
                transformed, images = self.sequence.transform(own, beta), images_BCHW[b_P[part]]
                if self.fits_color:
                    color = self.fitted_color(transformed.detach(), images)
                    scores = self.pair_scores(transformed, images, self.pixel_weights_HW, color)
                    scores = scores - 0.5 * penalty(color, self._color_unit)
                    colors.append(color)
                else:
                    scores = self.pair_scores(transformed, images, self.pixel_weights_HW)
                weighted = (gamma_P[part] * scores).sum()
                first, *others = torch.autograd.grad(weighted, [own, *beta.values()])
                total += weighted.detach()
                canvas_gradient.index_add_(0, k_P[part], first)  # in a fixed order on a CPU
                for gradient, other in zip(gradients.values(), others, strict=True):
                    gradient[part] = other
        expected: Tensor = _KnownGradients.apply(  # type: ignore[no-untyped-call]
            total, [canvas_gradient, *gradients.values()], canvas, *pairs.values()
        )
        return expected, torch.cat(colors) if colors else None

    @property
    def _color_unit(self) -> float:
        """Factor on the priors of colours: 1 in nats."""
        return self.constant_precision * self.min_variance

    @torch.no_grad()
    def fitted_color(self, canvases: Tensor, images: Tensor) -> Tensor:
        """Return the colours (P, 2 C) with which transformed canvases (P, C', H, W) fit images (P, C, H, W) best."""
        moments, _ = self._moments(canvases[None], Powers.of(images.flatten(2)), self.pixel_weights_HW)
        return fit_color(moments, self._color_unit)[0].to(images.dtype)

    def _moments(self, canvases: Tensor, images: Powers, weights: Tensor | None) -> tuple[Moments, Tensor | float]:
        """Return the moments (K, B, C) of transformed canvases (K, B, C', H, W) on B images of this size.

        The second value is the sum (K, B) of the logarithms of learned precisions, 0 where none are learned.
        """
        pictures = canvases[:, :, : self.image_shape[0]].flatten(3)
        precision = self.precision(canvases)
        if precision is None:
            constant = pictures.new_full((pictures.shape[-1],), self.constant_precision)
            return pair_moments(pictures, images, constant if weights is None else constant * weights.flatten()), 0.0
        log_precision = _summed(precision.log(), weights)
        return pair_moments(pictures, images, _weighted(precision, weights).flatten(3)), log_precision

    def _prepared(self, images: Tensor) -> Tensor | Powers:
        """Return images (B, C, H, W) as `_each_score` needs them."""
        return Powers.of(images.flatten(2)) if self.fits_color else images

    def _each_score(self, canvases: Tensor, images: Tensor | Powers, weights: Tensor | None) -> Tensor:
        """Return the scores (K, B) of transformed canvases (K, B, C', H, W), recoloured, on `_prepared` images."""
        if isinstance(images, Tensor):
            return self.pair_scores(canvases, images, weights)
        part = canvases.shape[-2:].numel() / math.prod(self.image_shape[1:])
        return self._fitted_scores(*self._moments(canvases, images, weights), part)

    def _fitted_scores(self, moments: Moments, log_precision: Tensor | float, part: float = 1.0) -> Tensor:
        """Return scores (...) without prior from `moments` (..., C), with fitted colours where the method has them.

        `part` is the part of the pixels from which the moments were computed.
        """
        color = fit_color(moments, part * self._color_unit) if self.fits_color else None
        distances = distance(moments, color)
        if color is not None:
            distances = distances + penalty(color, part * self._color_unit)
        return self.scores_of_distances(distances, log_precision).to(self.prototypes.dtype)

    def _still_scores(self, canvas: Tensor, images_BCHW: Tensor) -> Tensor:
        """Return the scores (B, K) of all pairs without spatial transformations, computed as matrix products."""
        prototypes_KCHW = canvas[:, : self.image_shape[0]]
        precision_KCHW, log_precision = self.precision(canvas), torch.zeros(())
        if precision_KCHW is None:
            precision_KCHW = torch.full_like(prototypes_KCHW, self.constant_precision)
        else:
            log_precision = _summed(precision_KCHW.log(), self.pixel_weights_HW)
        weights_KCN = _weighted(precision_KCHW, self.pixel_weights_HW).flatten(2)
        moments = still_moments(images_BCHW.flatten(2), prototypes_KCHW.flatten(2), weights_KCN)
        return self._fitted_scores(moments, log_precision)

    @torch.no_grad()
    def _training_scores(
        self, canvas: Tensor, images_BCHW: Tensor, parameters: dict[str, Tensor], log_prior_K: Tensor
    ) -> Tensor:
        """Return scores with prior (B, K), which are -inf for prototypes that screening ruled out."""
        stride = self.screen_stride
        coarse_px = min(self.image_shape[1:]) // stride
        if (
            stride == 1
            or self.k <= SURVIVORS
            or coarse_px < SMALLEST_SCREEN_PX
            or not self.sequence.screens(parameters)
        ):
            return self._all_scores(canvas, images_BCHW, parameters) + log_prior_K
        coarse_BK = stride**2 * self._all_scores(canvas, images_BCHW, parameters, stride) + log_prior_K
        survivors_BS = coarse_BK.topk(SURVIVORS, dim=1).indices
        k_P = survivors_BS.flatten()
        b_P = torch.arange(len(images_BCHW), device=k_P.device).repeat_interleave(SURVIVORS)
        exact = []
        for b, k in zip(*(index.split(self._pairs_at_once(images_BCHW)) for index in (b_P, k_P)), strict=True):
            transformed = self._transformed(canvas, k, {name: beta[b, k] for name, beta in parameters.items()})
            scores = self._each_score(transformed[None], self._prepared(images_BCHW[b]), self.pixel_weights_HW)[0]
            exact.append(scores + log_prior_K[k])
        exact_BS = torch.cat(exact).view_as(survivors_BS)
        return torch.full_like(coarse_BK, -torch.inf).scatter_(1, survivors_BS, exact_BS)

    @torch.no_grad()
    def _all_scores(
        self, canvas: Tensor, images_BCHW: Tensor, parameters: dict[str, Tensor], stride: int = 1
    ) -> Tensor:
        """Return scores without prior (B, K), computed on every `stride`-th pixel in both directions."""
        if not parameters:
            return self._still_scores(canvas, images_BCHW)
        weights = self.pixel_weights_HW
        if stride > 1:
            images_BCHW = every(images_BCHW, stride)
            weights = None if weights is None else every(weights, stride)
        columns = []
        images = self._prepared(images_BCHW)
        for part in self._prototypes_at_once(images_BCHW):
            beta = {name: value[:, part].transpose(0, 1) for name, value in parameters.items()}
            transformed = self.sequence.transform_each(canvas[part], beta, stride)
            columns.append(self._each_score(transformed, images, weights).T)
        return torch.cat(columns, dim=1)

    def _pairs_at_once(self, images_BCHW: Tensor) -> int:
        """Return the number of canvases of the size of `images_BCHW` that a pass transforms at once."""
        canvas_bytes = 2 * images_BCHW[:1].numel() * images_BCHW.element_size()
        return max(1, CHUNK_BYTES.get(images_BCHW.device.type, CHUNK_BYTES["cuda"]) // max(1, canvas_bytes))

    def _prototypes_at_once(self, images_BCHW: Tensor) -> list[slice]:
        """Split the prototypes into parts, each of which a pass transforms onto all images at once."""
        step = max(1, self._pairs_at_once(images_BCHW) // max(1, len(images_BCHW)))
        return [slice(start, start + step) for start in range(0, self.k, step)]

    def _transformed(self, canvas: Tensor, k_P: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Return the canvases of prototypes `k_P` (P, C', H, W), each transformed by its own parameters."""
        return self.sequence.transform(canvas.index_select(0, k_P), parameters)


def _pairs(gamma_BK: Tensor, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, prototype and responsibility of all pairs in the M-step, padded to a multiple of `multiple`.

    Padding repeats the first pair with responsibility 0. Without padding nearly every step would have a different
    number of pairs, and convolution libraries need as long to prepare for a new shape as for the computation.
    """
    b_P, k_P = torch.nonzero(gamma_BK > NEGLIGIBLE, as_tuple=True)
    gamma_P = gamma_BK[b_P, k_P]
    missing = -len(b_P) % multiple
    first = slice(0, 1)
    return (
        torch.cat([b_P, b_P[first].expand(missing)]),
        torch.cat([k_P, k_P[first].expand(missing)]),
        torch.cat([gamma_P, gamma_P.new_zeros(missing)]),
    )


class _KnownGradients(torch.autograd.Function):
    """A value whose gradients with respect to its inputs have already been computed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *inputs: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(known.mul_(gradient) for known in ctx.gradients))


class _GaussianScores(torch.autograd.Function):
    """Log density of images under canvases of means and scales, without its constant, and its closed-form gradient.

    Autograd would keep five pictures for every pair, and two more to recolour it. This function keeps only the canvas
    and the images, and writes the gradient in place.
    """

    @staticmethod
    def forward(
        ctx: Any, canvas: Tensor, images: Tensor, weights: Tensor | None, min_variance: float, color: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(canvas, images)
        ctx.weights, ctx.min_variance, ctx.color = weights, min_variance, color
        mean, scale = canvas.chunk(2, dim=-3)
        variance = scale.square().add_(min_variance)
        terms = (images - _recolored(mean, color)).square_().div_(variance).add_(variance.log_())
        return -0.5 * _summed(terms, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        canvas, images = ctx.saved_tensors
        mean, scale = canvas.chunk(2, dim=-3)
        gradient = _weighted(gradient[..., None, None, None], ctx.weights)
        precision = scale.square().add_(ctx.min_variance).reciprocal_()
        pull = (images - _recolored(mean, ctx.color)).mul_(precision)
        out = torch.empty_like(canvas)
        mean_part, scale_part = out.chunk(2, dim=-3)
        torch.mul(pull, pull, out=scale_part).sub_(precision).mul_(scale).mul_(gradient)
        torch.mul(pull, gradient, out=mean_part)
        if ctx.color is not None:
            mean_part.mul_(gain_and_bias(ctx.color)[0][..., None, None])
        return out, None, None, None, None


class DTIGaussianMixture(DTI):
    """DTI GMM: Algorithm 1 with diagonal covariances.

    The variance of a pixel is s^2 + sigma_min^2 with a learned s, which is warped together with the prototype. Until
    `activate` switches learned variances on, all are sigma_min^2. Losses are negative log-likelihoods in nats, summed
    over pixels. Images are assigned by posterior, which includes the mixing proportions.
    """

    def __init__(self, config: ClusteringConfig, initial_KCHW: Tensor, device_type: str = "cpu") -> None:
        super().__init__(config, initial_KCHW, device_type)
        self.scales = nn.Parameter(torch.full_like(initial_KCHW, config.initial_std))
        self.register_buffer("log_mixing_K", torch.full((self.k,), -math.log(self.k)))
        weights_HW = torch.ones(self.image_shape[1:]) if self.pixel_weights_HW is None else self.pixel_weights_HW
        self.weight_sum = self.image_shape[0] * float(weights_HW.double().sum())
        """Sum of the weights of all pixels and channels."""

    log_mixing_K: Tensor
    """Logarithms of the mixing proportions."""

    def activate(self, predicted_modules: int, learn_variances: bool = False) -> None:
        super().activate(predicted_modules, learn_variances)
        self.scales.requires_grad_(learn_variances)

    def canvas(self) -> Tensor:
        return torch.cat([self.prototypes, self.scales], dim=1) if self.learns_variances else self.prototypes

    @property
    def constant_precision(self) -> float:
        return 1 / self.min_variance

    def precision(self, canvas: Tensor) -> Tensor | None:
        if not self.learns_variances:
            return None
        return canvas[..., self.image_shape[0] :, :, :].square().add_(self.min_variance).reciprocal_()

    def pair_scores(
        self, canvas: Tensor, images: Tensor, weights: Tensor | None, color: Tensor | None = None
    ) -> Tensor:
        if not self.learns_variances:
            distances = _summed((images - _recolored(canvas, color)).square_(), weights) * self.constant_precision
            return self.scores_of_distances(distances, 0.0)
        values = canvas, images, weights, self.min_variance, color
        scores: Tensor = _GaussianScores.apply(*values)  # type: ignore[no-untyped-call]
        return scores - 0.5 * self.weight_sum * math.log(2 * math.pi)

    def scores_of_distances(self, distances: Tensor, log_precision: Tensor | float) -> Tensor:
        variance = 1.0 if self.learns_variances else self.min_variance
        return -0.5 * (distances - log_precision + self.weight_sum * math.log(2 * math.pi * variance))

    def log_prior(self) -> Tensor:
        return self.log_mixing_K

    def set_shares(self, shares_K: Tensor) -> None:
        self.log_mixing_K.copy_(shares_K.log())

    def responsibilities(self, scores_BK: Tensor) -> Tensor:
        return scores_BK.softmax(1)

    def losses(self, scores_BK: Tensor) -> Tensor:
        return -scores_BK.logsumexp(1)


class DTIKMeans(DTI):
    """DTI K-means: the squared error of the best transformed prototype, averaged over pixels (equation 4)."""

    def canvas(self) -> Tensor:
        return self.prototypes

    @property
    def constant_precision(self) -> float:
        return 2 / math.prod(self.image_shape)

    def precision(self, canvas: Tensor) -> Tensor | None:
        return None

    def pair_scores(
        self, canvas: Tensor, images: Tensor, weights: Tensor | None, color: Tensor | None = None
    ) -> Tensor:
        return -_summed((images - _recolored(canvas, color)).square_(), weights) / math.prod(self.image_shape)

    def scores_of_distances(self, distances: Tensor, log_precision: Tensor | float) -> Tensor:
        return -0.5 * distances

    def log_prior(self) -> Tensor:
        return self.prototypes.new_zeros(self.k)

    def set_shares(self, shares_K: Tensor) -> None:
        """Do nothing: all clusters of K-means have the same weight."""

    def responsibilities(self, scores_BK: Tensor) -> Tensor:
        return torch.zeros_like(scores_BK).scatter_(1, scores_BK.max(1, keepdim=True).indices, 1.0)

    def losses(self, scores_BK: Tensor) -> Tensor:
        return -scores_BK.amax(1)


def gaussian_weights(height: int, width: int, std: float | None) -> Tensor | None:
    """Return weights (height, width): 1 at the middle, falling off as a Gaussian of `std` px; None if `std` is None."""
    if std is None:
        return None
    y = torch.arange(height) - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    return torch.exp(-0.5 * (y[:, None].square() + x.square()) / std**2)


def _recolored(pictures: Tensor, color: Tensor | None) -> Tensor:
    """Return `pictures` (..., C, H, W) in `color` (..., 2 C), or as they are without one."""
    if color is None:
        return pictures
    gain, bias = (part[..., None, None] for part in gain_and_bias(color))
    return (pictures * gain).add_(bias)


def _weighted(terms: Tensor, weights: Tensor | None) -> Tensor:
    return terms if weights is None else terms * weights


def _summed(terms: Tensor, weights: Tensor | None) -> Tensor:
    """Return `terms` (..., C, H, W), weighted and summed over channels and pixels (...)."""
    return _weighted(terms, weights).sum((-3, -2, -1))


def _use_bfloat16(precision: str, device_type: str) -> bool:
    if precision != "auto":
        return precision == "bfloat16"
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # A CPU without these instructions accepts bfloat16 but emulates it, which is slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
