"""Mistakes that a user can make, each with the command that makes it and the message that must follow."""
