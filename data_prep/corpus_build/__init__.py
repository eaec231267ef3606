"""Steps of `data_prep/build.py`: datatrove pipelines from a corpus to shards and a manifest."""
