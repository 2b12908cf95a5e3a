"""Resampling rules: who is copied, who is moved between devices, what stays differentiable."""
