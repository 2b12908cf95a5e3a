"""Rewards, likelihoods and twists: steering, selection, twisted and fully adapted proposals."""
