"""Noise, denoising and guidance; knows nothing of rewards, agents or worlds."""
