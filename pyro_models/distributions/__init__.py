"""Distributions that torch and Pyro lack or get wrong."""
