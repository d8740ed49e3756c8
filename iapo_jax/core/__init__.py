"""Foundations that know nothing of models or reinforcement learning."""
