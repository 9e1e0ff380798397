"""Networks, such as the entropy estimation model and the second-order model, and their checkpoints."""
