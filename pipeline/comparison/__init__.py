"""Comparison of training methods: documents to overfit, methods, their trials, and results on test documents."""
