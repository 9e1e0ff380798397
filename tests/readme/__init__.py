"""Pages taken apart, and what makes their commands small: README.md, the tutorial and links are held against it."""
