"""Data formats that processes and repositories exchange: input columns, output columns, provenance, receipts."""
