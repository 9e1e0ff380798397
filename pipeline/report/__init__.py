"""Reports on annotated datasets: an HTML page, or one document in a notebook or terminal."""
