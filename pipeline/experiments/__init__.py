"""Experiments: label methods on sources of known entropy, objectives on few documents, figures of the paper."""
