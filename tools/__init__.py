"""Programs for people who work on the project; nothing imports them, but the proofs how tables are written."""
