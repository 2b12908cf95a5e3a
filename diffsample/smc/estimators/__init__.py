"""Averages of weighted particles and what they are worth: standard errors, controls, single-run variances."""
