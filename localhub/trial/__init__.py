"""Trying an evalscript without any archive: on a small window that is made up."""
