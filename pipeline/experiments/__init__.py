"""Experiments of the measuring jobs: label methods on sources of known entropy, objectives on few texts, figures."""
