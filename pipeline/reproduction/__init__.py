"""The paper's five kinds of figure at a size that two CPU cores finish: its claims, to be seen or not."""
