"""The HTTP side of localhub: one module an API, over store and runner."""
