"""README.md taken apart, and what makes its commands small: all that tests/test_readme.py holds it against."""
