"""Files that an attacker prepares, and the doors that they try."""
