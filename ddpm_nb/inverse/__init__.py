"""Chapter 8. Inverse problems: Y = A(X) + σ_y Z, sampled by reverse diffusion and checked against exact posteriors.

A measurement is one object; what solves it wraps a denoiser or a kernel and is walked like any other.
"""

from ddpm_nb.inverse.denoising import (
    RePaint,
    Replacement,
    denoising_level,
    denoising_start,
)
from ddpm_nb.inverse.guidance import (
    DPS,
    PGDM,
    Guess,
    Guided,
    Likelihood,
    Twist,
    gaussian_spread,
    guided,
    no_spread,
)
from ddpm_nb.inverse.measurement import (
    Mask,
    Matrix,
    Measurement,
    Operator,
    Separable,
    average_pool,
    blur,
    measure,
)
from ddpm_nb.inverse.nonlinear import (
    Observation,
    ObservationLikelihood,
    observe,
)
from ddpm_nb.inverse.particles import Particles, twisted_walk
from ddpm_nb.inverse.posterior import (
    FullMixture,
    exact_posterior,
    posterior_errors,
)

__all__ = [
    "DPS",
    "PGDM",
    "FullMixture",
    "Guess",
    "Guided",
    "Likelihood",
    "Mask",
    "Matrix",
    "Measurement",
    "Observation",
    "ObservationLikelihood",
    "Operator",
    "Particles",
    "RePaint",
    "Replacement",
    "Separable",
    "Twist",
    "average_pool",
    "blur",
    "denoising_level",
    "denoising_start",
    "exact_posterior",
    "gaussian_spread",
    "guided",
    "measure",
    "no_spread",
    "observe",
    "posterior_errors",
    "twisted_walk",
]
