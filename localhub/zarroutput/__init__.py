"""Results as one Zarr group: what a request may ask for, the grid of its arrays, and what is written of them.

`parameters` is the request's part; `frame` and `documents` are pure; `group` writes. Format: Zarr storage
specification, version 2. Rules: OpenAPI description, `BatchV2ZarrOutput` and the schemas that it names.
"""
