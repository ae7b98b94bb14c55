"""The same optimisation step, written for each of the peers and for us."""
