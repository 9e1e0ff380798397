"""Files prepared by an attacker, and tests that they do no harm."""
