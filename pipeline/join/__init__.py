"""Labels of a sidecar, joined to the documents that they belong to."""
