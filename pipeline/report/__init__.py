"""Reports on annotated datasets: a page, or one document in a notebook or terminal."""
