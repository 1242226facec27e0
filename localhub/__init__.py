"""localhub: an embedded stand-in for Sentinel Hub (Batch Processing API v2), for trying and for testing."""
