"""The networks: entropy estimation model, second-order model, and how their checkpoints are kept."""
