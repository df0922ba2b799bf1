"""Falcon: attention and feed-forward side by side, one key for many queries."""
