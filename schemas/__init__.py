"""The contracts that cross a process or a repository: input columns, output columns, provenance."""
