"""Weights and the forward pass: from files of weights to representations of packed sequences."""
