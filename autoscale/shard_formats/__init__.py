"""Token shards as their writers left them, one format a file, behind one view (`TokenFile`)."""
