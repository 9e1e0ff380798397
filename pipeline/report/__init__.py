"""Shows annotated datasets: as a page, as a document in a notebook or in a terminal."""
