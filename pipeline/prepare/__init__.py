"""Readers of published data sets: each turns raw files into the standard tables of `store_schema.tables`."""
