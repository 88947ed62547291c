"""Programs for people who work on the project; nothing imports them."""
