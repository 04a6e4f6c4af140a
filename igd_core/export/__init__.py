"""Everything that a store has on record of users, as Parquet: events, and what was shown."""
