"""Latent variable models for Pyro, as model/guide pairs, and the engine that fits them."""
