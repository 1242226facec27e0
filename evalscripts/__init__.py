"""Sentinel Hub evalscripts, one per product, valid as they stand."""
