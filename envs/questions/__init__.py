"""Environments of questions: where problems come from, and when an answer is right."""
