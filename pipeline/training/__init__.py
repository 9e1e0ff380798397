"""Training: data, batches and objectives, and one loop for all models."""
