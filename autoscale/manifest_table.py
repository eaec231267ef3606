"""The table on the terminal of what a manifest holds."""

from rich.table import Table

from .manifest import Manifest, Shard
from .tables import new_table
from .token_count import round_token_count


def manifest_table(manifest: Manifest) -> Table:
    """Shards, documents and tokens of every domain; "none" where nothing is trained on."""
    table = new_table()
    table.add_column("domain")
    for column in ("shards", "documents", "train tokens", "validation tokens"):
        table.add_column(column, justify="right")
    for domain in manifest.domains:
        every = (*domain.train, *domain.validation)
        documents = [shard.documents for shard in every if shard.documents is not None]
        table.add_row(
            domain.name,
            f"{len(domain.train)} + {len(domain.validation)}",
            f"{sum(documents):,}" if len(documents) == len(every) else "not known",
            _tokens(domain.train) if domain.train else "none",
            _tokens(domain.validation),
        )
    return table


def _tokens(shards: tuple[Shard, ...]) -> str:
    return round_token_count(sum(shard.tokens for shard in shards))
