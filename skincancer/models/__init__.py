"""Backbones, weights, losses, optimisers and the Lightning tasks."""
