"""Denoising diffusion probabilistic models: the package behind the book, one module for each layer of the theory."""

__version__ = "0.1.0"
