"""Files of any kind to shards: find, cut, read, build."""
