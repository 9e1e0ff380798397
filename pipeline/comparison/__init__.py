"""Comparison of training methods: documents to overfit, methods, their trials, and what the test documents tell."""
