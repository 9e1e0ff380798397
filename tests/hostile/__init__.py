"""Files prepared by an attacker, and the ways in that they try."""
