"""Mistakes that a user can make: each with the command that makes it and what is said then."""
