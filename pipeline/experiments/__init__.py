"""Experiments: label methods on sources of known entropy, figures of the paper."""
