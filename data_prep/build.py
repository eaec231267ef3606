"""A corpus to token shards, in one command, made of datatrove pipelines.

    read, filter -> drop near-duplicates -> drop what overlaps evaluation sets -> select (D4)
    -> split by document -> tokenize -> manifest.json, report.json

    python data_prep/build.py --corpus dolma --source data/dolma --output data/shards \
        --tokenizer data/tokenizer --tasks 64 --workers 16 --across-domains

data_prep/README.md describes the corpora, the options and the report.
"""

from corpus_build.command import main

if __name__ == "__main__":
    raise SystemExit(main())
