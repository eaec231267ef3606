"""Windows: the samples that a domain's shards hold, one form of cutting them a file."""
